"""The site of an accident: broker, database, store, backend and actors of its own, with a proxy before each part."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ops.local.install import find_rabbitmq
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.settings import LocalSettings
from tests.chaos.proxy import Proxy, open_proxy
from tests.listening_backend import Backend, open_backend

CREWS = (("image_generation", "watermark", "upload"), ("image",), ("webhook", "ledger"))
"""Who works in one process; each crew has two replicas."""

GRACE_SECONDS = 1.0


@dataclass
class Site:
    folder: Path
    node: RabbitNode
    postgres: EmbeddedPostgres
    backend: Backend
    broker_line: Proxy
    database_line: Proxy
    backend_line: Proxy
    environment: dict[str, str]
    staff: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    watches: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    deaths: int = 0

    @property
    def store(self) -> Path:
        return self.folder / "store"

    async def hire(self) -> None:
        """Two replicas of each crew; whoever dies is started again, as an operator's supervisor would."""
        for replica in (1, 2):
            for crew in CREWS:
                name = f"{crew[0]}-{replica}"
                self.watches[name] = asyncio.create_task(self.keep(name, crew))
        await self.until_ready()

    async def keep(self, name: str, crew: tuple[str, ...]) -> None:
        while True:
            with (self.folder / f"{name}.log").open("ab") as log:
                words = [sys.executable, "-m", "tests.dying", "never", "-", *crew]
                self.staff[name] = await asyncio.create_subprocess_exec(*words, env=self.environment, stdout=log, stderr=log)
            await self.staff[name].wait()
            self.deaths += 1

    async def until_ready(self) -> None:
        async with asyncio.timeout(90):
            while not all(b"actors.ready" in log.read_bytes() for log in self.folder.glob("*-[12].log")) or len(self.staff) < 6:
                await asyncio.sleep(0.1)

    def signal(self, name: str, number: int) -> None:
        with suppress(ProcessLookupError):
            self.staff[name].send_signal(number)

    def control(self, *words: str) -> None:
        """`rabbitmqctl`, spoken to this node. Blocks."""
        program = find_rabbitmq(LocalSettings()).with_name("rabbitmqctl")
        subprocess.run([program, "-q", *words], env=self.node.environment, check=True, capture_output=True, timeout=60)

    async def dismiss(self) -> None:
        for watch in self.watches.values():
            watch.cancel()
        for name in self.staff:
            self.signal(name, signal.SIGTERM)
        for process in self.staff.values():
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()
                await process.wait()


@asynccontextmanager
async def open_site(folder: Path, mutation: str = "") -> AsyncIterator[Site]:
    """Everything up and served. `mutation` names a safety that is taken away, to see the suite notice."""
    node = RabbitNode(folder / "rabbitmq", find_rabbitmq(LocalSettings()))
    postgres = EmbeddedPostgres(folder / "postgres")
    try:
        await asyncio.gather(asyncio.to_thread(node.start), asyncio.to_thread(postgres.start))
        async with AsyncExitStack() as stack:
            backend = await stack.enter_async_context(open_backend())
            lines = [await stack.enter_async_context(open_proxy(urlsplit(url).port or 0)) for url in (node.url, postgres.url, backend.url)]
            (folder / "store").mkdir(exist_ok=True)
            environment = surroundings(node, postgres, lines, folder / "store") | {"ATELIER_MUTATION": mutation}
            site = Site(folder, node, postgres, backend, *lines, environment)
            try:
                await site.hire()
                yield site
            finally:
                await site.dismiss()
    finally:
        await asyncio.gather(asyncio.to_thread(node.stop), asyncio.to_thread(postgres.stop))


def surroundings(node: RabbitNode, postgres: EmbeddedPostgres, lines: list[Proxy], store: Path) -> dict[str, str]:
    """What the actors read: every part by way of its proxy, short waits."""
    broker, database, backend = (f"127.0.0.1:{line.port}" for line in lines)
    return dict(os.environ) | {
        "AMQP_URL": node.url.replace(urlsplit(node.url).netloc.partition("@")[2], broker),
        "DATABASE_URL": postgres.url.replace(urlsplit(postgres.url).netloc.partition("@")[2], database),
        "STORE_URL": store.as_uri(),
        "BACKEND_API_URL": f"http://{backend}",
        "RETRY_DELAYS_SECONDS": "0.5,1,2,4,8,16",
        "LONG_DELAYS_SECONDS": "20",
        "GRACE_SECONDS": str(GRACE_SECONDS),
        "HEARTBEAT_SECONDS": "2",
        "PUBLISH_TIMEOUT_SECONDS": "5",
        "WEBHOOK_TIMEOUT_SECONDS": "3",
    }
