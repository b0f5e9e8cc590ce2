"""Whether an actor can work: one that says it cannot stops taking deliveries, which wait in the broker, until it can again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog
from faststream.rabbit.subscriber import RabbitSubscriber

from bus.amqp.broker import pause_consumer, resume_consumer

log = structlog.get_logger()


class Readiness:
    """What an actor says of itself. `reason`: why it can do no work, None when it can; `since`: when it began to say so."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.reason: str | None = None
        self.since = datetime.now(UTC)
        self._changed = asyncio.Event()

    def set_unready(self, reason: str | None) -> None:
        if reason is None or self.reason is None:
            self.since = datetime.now(UTC)
        self.reason = reason
        self._changed.set()

    async def control_consumer(self, subscriber: RabbitSubscriber) -> None:
        """Pause and resume the consumer as the actor says, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.reason:
                log.error("actor.paused", step=self.step, reason=self.reason)
                await pause_consumer(subscriber)
            elif await resume_consumer(subscriber):
                log.info("actor.resumed", step=self.step)


@asynccontextmanager
async def apply_readiness(pairs: "list[tuple[Readiness, RabbitSubscriber]]") -> AsyncIterator[None]:
    tasks = [asyncio.create_task(readiness.control_consumer(subscriber)) for readiness, subscriber in pairs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
