"""A gateway in a process of its own, started by `atelier gateway`."""

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
    """The process, its port, and the seconds until it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, started_seconds: float) -> None:
        self.process, self.port, self.started_seconds = process, port, started_seconds
        self.psutil_process = psutil.Process(process.pid)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request on a connection of its own; a thousand httpx clients would need more memory than the gateway."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode() if body is not None else b""
        head = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
        ]
        writer.write("\r\n".join([*head, "", ""]).encode() + data)
        response = await reader.read()
        writer.close()
        head_lines, _, text = response.partition(b"\r\n\r\n")
        return int(head_lines.split()[1]), json.loads(text)

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        assert await self.process.wait() == -9


@asynccontextmanager
async def open_gateway_process(bus: BusSettings, **settings: str) -> AsyncIterator[GatewayProcess]:
    """Terminates the process at the end unless it was killed. `settings`: environment variables."""
    environment = os.environ | {"AMQP_URL": bus.amqp_url.get_secret_value(), "PUBLISH_TIMEOUT_SECONDS": "60"} | settings
    started = time.monotonic()
    command = [sys.executable, "-m", "ops.cli", "gateway", "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(120):
            while b"gateway.ready" not in (line := await process.stderr.readline()):
                assert line, "the gateway ended"
        drain = asyncio.create_task(process.stderr.read())
        yield GatewayProcess(process, int(json.loads(line)["url"].rpartition(":")[2]), time.monotonic() - started)
        if process.returncode is None:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 15) == 0, "it must exit with 0"
        await drain
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
