"""The environment of a chaos run: its own broker, database, store, backend and workers, with a proxy in front of each service.

There are three kinds: `folder` and `bucket`, by where images are stored, and `engine`, where a real model generates them in a
process of its own.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.settings import LocalSettings
from tests.chaos.journal import DeliveryCounts
from tests.chaos.picture_stores import FolderStore, PictureStore, open_bucket
from tests.support.tcp_proxy import TcpProxy, open_proxy
from tests.support.webhook_backend import WebhookBackend, open_webhook_backend

WORKER_GROUPS = (("image_generation", "watermark", "upload"), ("image",), ("webhook", "ledger"))
"""The steps of each worker process."""

GRACE_SECONDS = 1.0
STOP_SECONDS = 15.0
MUTATION_VARIABLE = "ATELIER_MUTATION"
ENVIRONMENT_KINDS = ("folder", "bucket", "engine")


@dataclass
class ChaosEnvironment:
    folder: Path
    node: RabbitNode
    postgres: EmbeddedPostgres
    backend: WebhookBackend
    picture_store: PictureStore
    broker_proxy: TcpProxy
    database_proxy: TcpProxy
    backend_proxy: TcpProxy
    store_proxy: TcpProxy
    environment: dict[str, str]
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    supervisor_tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    journals: dict[str, Path] = field(default_factory=dict)
    """Of each worker the deliveries since its last start; see `tests/chaos/journal.py`."""
    exit_count: int = 0
    failed_orders: list[int] = field(default_factory=list)
    kind: str = "folder"
    replicas: int = 2
    hostile_bodies: set[bytes] = field(default_factory=set)
    """Of the hostile messages that the broker confirmed and a consumer must dead-letter; see `tests/chaos/attack.py`."""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    async def start_workers(self) -> None:
        """The replicas of each group; a worker that exits is restarted, as an operator's supervisor would."""
        for steps in WORKER_GROUPS:
            for name in self.workers(steps[0]):
                self.supervisor_tasks[name] = asyncio.create_task(self.supervise(name, steps))
        await self.wait_until_ready()

    def workers(self, step: str) -> list[str]:
        """The names of the workers whose first step it is."""
        return [f"{step}-{replica}" for replica in range(1, self.replicas + 1)]

    async def restart_with(self, mutation: str) -> None:
        """All workers with another mutation, on an empty broker: what the one before has left there is of no interest."""
        await self.stop_workers()
        self.processes.clear()
        for log in self.folder.glob("*-[12].log"):
            log.unlink()
        for arguments in (("delete_vhost", "/"), ("add_vhost", "/"), ("set_permissions", "-p", "/", "atelier", ".*", ".*", ".*")):
            await asyncio.to_thread(self.node.rabbitmqctl, *arguments)
        self.environment[MUTATION_VARIABLE] = mutation
        await self.start_workers()

    async def supervise(self, name: str, steps: tuple[str, ...]) -> None:
        while True:
            self.journals[name] = self.folder / f"{name}-{time.monotonic_ns()}.journal"
            with (self.folder / f"{name}.log").open("ab") as log:
                with_engine = self.kind == "engine" and steps == ("image",)
                module = ("ops.cli", "run") if with_engine else ("tests.chaos.worker", str(self.journals[name]))
                command = [sys.executable, "-m", *module, *steps]
                self.processes[name] = await asyncio.create_subprocess_exec(*command, env=self.environment, stdout=log, stderr=log)
            await self.processes[name].wait()
            self.exit_count += 1

    async def wait_until_ready(self) -> None:
        async with asyncio.timeout(180):
            while len(self.processes) < len(self.supervisor_tasks) or not all(
                b"actors.ready" in log.read_bytes() for log in self.folder.glob("*-[12].log")
            ):
                await asyncio.sleep(0.1)

    def deliveries(self, step: str) -> DeliveryCounts:
        """Of the workers whose first step it is, since their last start."""
        return sum((DeliveryCounts.read(self.journals[name]) for name in self.workers(step)), DeliveryCounts())

    def count_redelivered(self) -> int:
        """Of all workers since the first start."""
        return sum(DeliveryCounts.read(journal).redelivered for journal in self.folder.glob("*.journal"))

    def count_messages(self) -> int:
        """In all queues of the broker, with those that are delivered and not acked. Blocks. A quorum queue reports with a delay of 5 s."""
        command = [self.node.control_program, "-q", "list_queues", "--no-table-headers", "messages"]
        return sum(map(int, subprocess.check_output(command, env=self.node.environment, timeout=60).split()))

    def send_signal(self, name: str, signal_number: int) -> None:
        with suppress(ProcessLookupError):
            self.processes[name].send_signal(signal_number)

    def log_excerpts(self) -> dict[int, list[str]]:
        """The lines of the workers' logs about the orders that failed the check, by order number."""
        lines = [line for log in sorted(self.folder.glob("*-[12].log")) for line in log.read_text(errors="replace").splitlines()]
        return {
            number: sorted(line for line in lines if re.search(rf"\b(generation|gen)-{number}\b", line)) for number in self.failed_orders
        }

    def kill_children(self, name: str) -> None:
        """SIGKILL to the children of a process, not to the process itself."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.processes[name].pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()

    def set_consumer_timeout(self, milliseconds: int) -> None:
        """It holds for channels opened from now on, so connections are closed. The broker checks once a tick. Blocks."""
        settings = {"consumer_timeout": milliseconds, "channel_tick_interval": min(milliseconds // 4, 60_000)}
        for name, value in settings.items():
            self.node.rabbitmqctl("eval", f"application:set_env(rabbit, {name}, {value}).")
        self.node.rabbitmqctl("close_all_connections", "chaos")

    async def stop_workers(self) -> None:
        """SIGTERM; SIGKILL to those that run after STOP_SECONDS."""
        for task in self.supervisor_tasks.values():
            task.cancel()
        await asyncio.gather(*self.supervisor_tasks.values(), return_exceptions=True)
        for name in self.processes:
            self.send_signal(name, signal.SIGTERM)
        exits = [asyncio.create_task(process.wait()) for process in self.processes.values()]
        if exits:
            await asyncio.wait(exits, timeout=STOP_SECONDS)
        for process, exited in zip(self.processes.values(), exits, strict=True):
            if not exited.done():
                process.kill()
                await exited


@asynccontextmanager
async def open_environment(
    folder: Path, mutation: str = "", kind: str = "folder", replicas: int = 2, with_workers: bool = True
) -> AsyncIterator[ChaosEnvironment]:
    """All services and workers, ready. `mutation`: a safety mechanism that is disabled, so that the suite must notice."""
    node = RabbitNode(folder / "rabbitmq", find_or_install_rabbitmq(LocalSettings()))
    postgres = EmbeddedPostgres(folder / "postgres")
    try:
        await asyncio.gather(asyncio.to_thread(node.start), asyncio.to_thread(postgres.start))
        async with AsyncExitStack() as stack:
            backend = await stack.enter_async_context(open_webhook_backend())
            store: PictureStore = FolderStore(folder / "store")
            if kind == "bucket":
                store = await stack.enter_async_context(open_bucket(folder))
            ports = [urlsplit(url).port or 0 for url in (node.url, postgres.url, backend.url)]
            proxies = [await stack.enter_async_context(open_proxy(port)) for port in (*ports, store.port)]
            environment = worker_environment(node, postgres, proxies) | store.environment(proxies[-1].port) | {MUTATION_VARIABLE: mutation}
            if kind == "engine":
                environment |= await make_tiny_model(folder, environment)
            opened = ChaosEnvironment(folder, node, postgres, backend, store, *proxies, environment, kind=kind, replicas=replicas)
            try:
                if with_workers:
                    await opened.start_workers()
                yield opened
            finally:
                await opened.stop_workers()
    finally:
        await asyncio.gather(asyncio.to_thread(node.stop), asyncio.to_thread(postgres.stop))


async def make_tiny_model(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """A tiny checkpoint, created in another process, so that this one never imports torch."""
    arguments = ["-m", "ops.cli", "models", "tiny", "--folder", str(folder / "models")]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment, stdout=subprocess.DEVNULL)
    assert await process.wait() == 0
    return {"IMAGE_MODEL": str(folder / "models" / "tiny-sd"), "IMAGE_DEVICE": "cpu", "IMAGE_THREADS": "1", "IMAGE_PINNED": "true"}


def worker_environment(node: RabbitNode, postgres: EmbeddedPostgres, proxies: list[TcpProxy]) -> dict[str, str]:
    """The settings of the workers: every service through its proxy, short delays."""
    broker, database, backend, _ = (f"127.0.0.1:{proxy.port}" for proxy in proxies)
    return dict(os.environ) | {
        "AMQP_URL": node.url.replace(urlsplit(node.url).netloc.partition("@")[2], broker),
        "DATABASE_URL": postgres.url.replace(urlsplit(postgres.url).netloc.partition("@")[2], database),
        "BACKEND_API_URL": f"http://{backend}",
        "RETRY_DELAYS_SECONDS": "0.5,1,2,4,8,16",
        "LONG_DELAYS_SECONDS": "20",
        "GRACE_SECONDS": str(GRACE_SECONDS),
        "HEARTBEAT_SECONDS": "2",
        "PUBLISH_TIMEOUT_SECONDS": "5",
        "WEBHOOK_TIMEOUT_SECONDS": "3",
        "ENGINE_FIRST_WAIT_SECONDS": "0.2",
    }
