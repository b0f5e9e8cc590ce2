"""A gateway as a process of its own, as `atelier gateway` starts it."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil

from bus.settings import BusSettings


class GatewayProcess:
    """The process, its port, and how long it took until it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, started_seconds: float) -> None:
        self.process, self.port, self.started_seconds = process, port, started_seconds
        self.psutil_process = psutil.Process(process.pid)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request on a connection of its own. A full HTTP client a thousand times would weigh more than what is measured."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode() if body is not None else b""
        head = [
            f"{method} {path} HTTP/1.1",
            "Host: x",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
        ]
        writer.write("\r\n".join([*head, "", ""]).encode() + data)
        answer = await reader.read()
        writer.close()
        lines, _, text = answer.partition(b"\r\n\r\n")
        return int(lines.split()[1]), json.loads(text)

    async def kill(self) -> None:
        """As the kernel does it: no word to anyone."""
        self.process.kill()
        assert await self.process.wait() == -9


@asynccontextmanager
async def open_gateway_process(bus: BusSettings, **settings: str) -> AsyncIterator[GatewayProcess]:
    """It leaves in order at the end, unless it was killed before."""
    environment = os.environ | {"AMQP_URL": bus.amqp_url.get_secret_value(), "PUBLISH_TIMEOUT_SECONDS": "60"} | settings
    begun = time.monotonic()
    words = [sys.executable, "-m", "ops.cli", "gateway", "--port", "0"]
    process = await asyncio.create_subprocess_exec(*words, env=environment, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while b"gateway.ready" not in (line := await process.stderr.readline()):
                assert line, "the gateway ended"
        drain = asyncio.create_task(process.stderr.read())
        yield GatewayProcess(process, int(json.loads(line)["url"].rpartition(":")[2]), time.monotonic() - begun)
        if process.returncode is None:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 15) == 0, "it leaves in order"
        await drain
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
