"""Celery: late acks, confirmed publishes, a quorum queue, worker threads; replies by its rpc:// backend."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery
from celery.app.trace import setup_worker_optimizations

from benchmarks.peers.workload import CompletionCounter, PeerConfig, Workload

MAX_THREADS = 16
"""More threads are slower here."""


def create_app(config: PeerConfig) -> tuple[Celery, Any]:
    done = CompletionCounter()
    app = Celery(broker=config.amqp_url, backend="rpc://")
    app.conf.update(
        task_default_queue=config.queue,
        task_default_queue_type="quorum",
        worker_detect_quorum_queues=True,
        broker_transport_options={"confirm_publish": True},
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        worker_prefetch_multiplier=max(1, config.in_flight // MAX_THREADS),
        result_persistent=True,
        worker_hijack_root_logger=False,
    )

    def take(run: str, of: int, pad: str) -> str | None:
        done.record(run, of)
        return None if of else pad

    return app, app.task(take, name="take")


@asynccontextmanager
async def open_worker(config: PeerConfig) -> AsyncIterator[None]:
    app, _ = create_app(config)
    ready = threading.Event()
    app.set_default()
    setup_worker_optimizations(app)  # as its command line does: without it no results are sent
    worker = app.WorkController(
        pool_cls="threads",
        concurrency=min(MAX_THREADS, config.in_flight),
        ready_callback=lambda _: ready.set(),
        without_mingle=True,
        without_gossip=True,
    )
    threading.Thread(target=worker.start, daemon=True).start()
    await asyncio.to_thread(ready.wait, 60)
    yield


class PeerSender:
    def __init__(self, take: Any, threads: int) -> None:
        self._take, self._threads = take, threads
        self._reply_thread = ThreadPoolExecutor(1)  # rpc:// gives replies only to the thread that sent the first request

    async def send(self, run: Workload) -> None:
        await asyncio.to_thread(self._send, run)

    async def ask(self, run: Workload) -> None:
        await asyncio.get_running_loop().run_in_executor(self._reply_thread, self._ask, run)

    def _send(self, run: Workload) -> None:
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda _: self._take.apply_async(kwargs=run.body, ignore_result=True), range(run.count)))

    def _ask(self, run: Workload) -> None:
        """A window of requests, of which the oldest is awaited."""
        pending: deque[Any] = deque()
        for _ in range(run.count):
            if len(pending) == run.in_flight:
                pending.popleft().get(timeout=600)
            pending.append(self._take.apply_async(kwargs=run.body))
        while pending:
            pending.popleft().get(timeout=600)


@asynccontextmanager
async def open_sender(config: PeerConfig) -> AsyncIterator[PeerSender]:
    app, take = create_app(config)
    try:
        yield PeerSender(take, min(MAX_THREADS, config.in_flight))
    finally:
        app.close()
