"""The deliveries in flight, each in a task of its own, and how to wait for them."""

import asyncio
from dataclasses import dataclass, field

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.amqp.direct_channel import TaskStarter
from bus.delivery import OnMessage

CANCEL_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger()


@dataclass
class InFlightTasks:
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def track(self, on_message: OnMessage) -> TaskStarter:
        """`on_message`, with each delivery in a task of its own.

        The AMQP library cancels its tasks when a connection is lost, but a run that was started must finish and be marked done: the
        message is redelivered, and answered from the inbox.
        """

        def start(message: AbstractIncomingMessage) -> None:
            task = asyncio.create_task(on_message(message))
            self.tasks.add(task)
            task.add_done_callback(self._on_done)

        return TaskStarter(start)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("delivery.task_failed", error=repr(error), meaning="unless it was acknowledged, it is delivered again")

    async def drain(self, grace_seconds: float) -> int:
        """Wait for the tasks; cancel those that are left after the grace period and return their number."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_seconds)
        unfinished = set(self.tasks)
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=CANCEL_TIMEOUT_SECONDS)
        return len(unfinished)
