"""Readiness of an actor: one that reports a reason why it cannot work is paused, and its deliveries wait in the broker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog
from faststream.rabbit.subscriber import RabbitSubscriber

from bus.amqp.broker import pause_consumer, resume_consumer
from bus.masking import mask_text

log = structlog.get_logger()


class Readiness:
    """The state that an actor reports. `reason`: why it cannot work, None when it can; `since`: when that state began."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.reason: str | None = None
        self.since = datetime.now(UTC)
        self._changed = asyncio.Event()

    def pause_reason(self) -> str | None:
        return self.reason

    def set_unready(self, reason: str | None) -> None:
        if reason is None or self.reason is None:
            self.since = datetime.now(UTC)
        self.reason = mask_text(reason) if reason else None
        self._changed.set()

    async def control_consumer(self, subscriber: RabbitSubscriber) -> None:
        """Pause and resume the consumer whenever the state changes. Never returns."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.reason:
                log.error("actor.paused", step=self.step, reason=self.reason)
                await pause_consumer(subscriber)
            elif await resume_consumer(subscriber):
                log.info("actor.resumed", step=self.step)


@asynccontextmanager
async def apply_readiness(consumers: Sequence[tuple[Readiness, RabbitSubscriber]]) -> AsyncIterator[None]:
    """Each subscriber follows its actor's readiness inside the block."""
    tasks = [asyncio.create_task(readiness.control_consumer(subscriber)) for readiness, subscriber in consumers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
