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

from ops.bench.peers.run import Done, Place, Run

THREADS = 16
"""At most; more of them are slower here."""


def made(place: Place) -> tuple[Celery, Any]:
    done = Done()
    app = Celery(broker=place.amqp_url, backend="rpc://")
    app.conf.update(
        task_default_queue=place.queue,
        task_default_queue_type="quorum",
        worker_detect_quorum_queues=True,
        broker_transport_options={"confirm_publish": True},
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        worker_prefetch_multiplier=max(1, place.in_flight // THREADS),
        result_persistent=True,
        worker_hijack_root_logger=False,
    )

    def take(run: str, of: int, pad: str) -> str | None:
        done.one(run, of)
        return None if of else pad

    return app, app.task(take, name="take")


@asynccontextmanager
async def open_worker(place: Place) -> AsyncIterator[None]:
    app, _ = made(place)
    ready = threading.Event()
    app.set_default()
    setup_worker_optimizations(app)  # as its command line does: without it results are not sent
    worker = app.WorkController(
        pool_cls="threads",
        concurrency=min(THREADS, place.in_flight),
        ready_callback=lambda _: ready.set(),
        without_mingle=True,
        without_gossip=True,
    )
    threading.Thread(target=worker.start, daemon=True).start()
    await asyncio.to_thread(ready.wait, 60)
    yield


class Sender:
    def __init__(self, take: Any, threads: int) -> None:
        self._take, self._threads = take, threads
        self._asker = ThreadPoolExecutor(1)  # rpc:// hands a reply to the thread that asked first, and to no other

    async def send(self, run: Run) -> None:
        await asyncio.to_thread(self._send, run)

    async def ask(self, run: Run) -> None:
        await asyncio.get_running_loop().run_in_executor(self._asker, self._ask, run)

    def _send(self, run: Run) -> None:
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda _: self._take.apply_async(kwargs=run.body, ignore_result=True), range(run.count)))

    def _ask(self, run: Run) -> None:
        """A window of questions, the oldest of which is awaited."""
        asked: deque[Any] = deque()
        for _ in range(run.count):
            if len(asked) == run.in_flight:
                asked.popleft().get(timeout=600)
            asked.append(self._take.apply_async(kwargs=run.body))
        while asked:
            asked.popleft().get(timeout=600)


@asynccontextmanager
async def open_sender(place: Place) -> AsyncIterator[Sender]:
    app, take = made(place)
    try:
        yield Sender(take, min(THREADS, place.in_flight))
    finally:
        app.close()
