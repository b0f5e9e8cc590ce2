"""Actors as processes of their own, image orders for them, and the webhooks and images that they produce."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from contracts import broker_names
from tests.support.broker_client import BrokerClient, wait_until
from tests.support.webhook_backend import WebhookBackend

GENERATION_IDS = count(int.from_bytes(os.urandom(5)))


def form_c_order(generation_id: int, **data: Any) -> dict[str, Any]:
    """An order in form C of `image_generation`."""
    order = {
        "generation_id": generation_id,
        "style_id": 1,
        "lora_path": None,
        "prompt": "harbour",
        "aspect_ratio": "1:1",
        "seed": 42,
        "signature_path": "",
        "signature_config": {"position": "bottom-right", "size": "medium", "opacity": 0.7},
        "prompt_tags": ["harbour"],
    }
    return {"task_id": "t", "type": "image_generation", "data": order | data, "webhook_url": "https://x.example/ignored"}


class WorkerProcesses:
    """Starts actors as processes; publishes orders; reads the backend's webhooks and the stored images."""

    def __init__(self, environment: dict[str, str], store: Path, backend: WebhookBackend, broker_client: BrokerClient) -> None:
        self.environment, self.store, self.backend, self.broker_client = environment, store, backend, broker_client

    @asynccontextmanager
    async def start_process(
        self, *steps: str, crash_point: str = "never", marker_file: Path | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        command = [sys.executable, "-m", "tests.support.crash_points", crash_point, str(marker_file or "-"), *steps]
        with TemporaryFile() as log:
            process = await asyncio.create_subprocess_exec(*command, env=self.environment, stderr=log)
            try:
                await wait_until_ready(process, log)
                yield process
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()

    async def publish_order(self, body: Any) -> None:
        await self.broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, body, exchange="")

    async def wait_for_webhooks(self, *last: str, seconds: float = 30) -> list[str]:
        """The names of all webhook calls, a moment after those without `progress` are `last`, so that an extra one would be seen."""

        async def have_arrived() -> bool:
            return sorted(call for call in self.backend.paths if call != "progress") == sorted(last)

        await wait_until(have_arrived, seconds)
        await asyncio.sleep(0.3)
        return self.backend.paths

    def stored_pictures(self) -> list[Path]:
        return sorted(self.store.rglob("generations/**/*.png"))


async def wait_until_ready(process: asyncio.subprocess.Process, log: IO[bytes], *, seconds: float = 40) -> None:
    """Wait until the process takes deliveries; fail with its log when it ends instead."""

    def output() -> bytes:
        return os.pread(log.fileno(), 1 << 20, 0)

    async with asyncio.timeout(seconds):
        while b"actors.ready" not in output():
            assert process.returncode is None, f"the process ended: {output().decode()[-3000:]}"
            await asyncio.sleep(0.05)
