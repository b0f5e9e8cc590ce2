"""Where images are stored: a folder on disk, or a bucket of a real S3 server in its own process."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import httpx

from ops.local import daemon

BUCKET = "gallery"


class PictureStore(Protocol):
    port: int

    def count_pictures(self) -> "Counter[int]":
        """The number of images of each order."""
        ...

    def environment(self, port: int) -> dict[str, str]:
        """The settings of the workers. `port`: that of the proxy in front of the store."""
        ...


class FolderStore:
    port = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def count_pictures(self) -> "Counter[int]":
        return Counter(int(path.stem.removeprefix("gen-")) for path in self.folder.glob("generations/gen-*.png"))

    def environment(self, port: int) -> dict[str, str]:
        return {"STORE_URL": self.folder.as_uri()}


class BucketStore:
    def __init__(self, port: int) -> None:
        self.port = port
        httpx.put(f"http://127.0.0.1:{port}/{BUCKET}").raise_for_status()

    def count_pictures(self) -> "Counter[int]":
        import boto3

        client: Any = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1", **S3_CREDENTIALS)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="atelier/generations/gen-")
        return Counter(int(Path(entry["Key"]).stem.removeprefix("gen-")) for page in pages for entry in page.get("Contents", ()))

    def environment(self, port: int) -> dict[str, str]:
        return {
            "STORE_URL": f"s3://{BUCKET}/atelier",
            "AWS_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_S3_REGION_NAME": "us-east-1",
            "STORE_TIMEOUT_SECONDS": "2",
        } | {name.upper(): value for name, value in S3_CREDENTIALS.items()}


S3_CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}


@asynccontextmanager
async def open_bucket(folder: Path) -> AsyncIterator[BucketStore]:
    """moto's S3 server. It keeps objects in memory, so no fault kills it."""
    (port,) = daemon.free_ports(1)
    with (folder / "moto.log").open("ab") as log:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        async with asyncio.timeout(60):
            while not await is_reachable(port):
                await asyncio.sleep(0.2)
        yield BucketStore(port)
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait)


async def is_reachable(port: int) -> bool:
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{port}/")).is_success
    return False
