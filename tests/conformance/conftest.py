"""A claim store of each kind: a folder on disk, and a bucket of two S3 servers, moto and Ceph."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from tests.support.ceph_store import store_settings


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's server on a free port of this machine."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> str:
    httpx.post(f"{s3_endpoint}/moto-api/reset")
    httpx.put(f"{s3_endpoint}/gallery").raise_for_status()
    return "gallery"


@pytest.fixture
def s3_settings(bucket: str, s3_endpoint: str) -> dict[str, Any]:
    return {
        "store_url": f"s3://{bucket}/atelier",
        "AWS_S3_ENDPOINT_URL": s3_endpoint,
        "AWS_S3_REGION_NAME": "us-east-1",
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
    }


@pytest.fixture
def ceph_settings(ceph_endpoint: str) -> dict[str, Any]:
    return store_settings(ceph_endpoint)


@pytest.fixture(params=["folder", "s3", "ceph"])
async def any_claim_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ClaimStore]:
    settings = {"store_url": tmp_path.as_uri()} if request.param == "folder" else request.getfixturevalue(f"{request.param}_settings")
    async with open_claim_store(StoreSettings(**settings)) as claims:
        yield claims
