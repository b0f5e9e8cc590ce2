"""The subscribers of a worker: one for each actor, adapter and dead-letter queue, each with a health check of its queue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from faststream.rabbit.subscriber import RabbitSubscriber

from bus.actor import Actor, Adapter, Handler
from bus.amqp.broker import create_broker, foreign_queue, quorum_queue, stop_consuming, subscribe
from bus.delivery import OnMessage
from bus.observability.health import Health
from bus.observability.health_checks import queue_check
from bus.persistence.inbox import NullInbox
from bus.settings import BusSettings
from bus.worker.adapter import AdapterConsumer
from bus.worker.cancellation import CancellationRegistry
from bus.worker.consumer import DeliveryConsumer
from bus.worker.in_flight import InFlightTasks
from bus.worker.readiness import Readiness, apply_readiness
from bus.worker.resources import WorkerResources
from contracts.broker_names import work_queue

log = structlog.get_logger()


class Subscribers:
    """The subscribers of one worker, on one connection. `name`: of the worker and its steps."""

    def __init__(self, name: str, settings: BusSettings, resources: WorkerResources, health: Health) -> None:
        self._settings, self._resources, self._health = settings, resources, health
        self._broker = create_broker(settings.broker_url, name)
        self._in_flight, self._crash_retry_lock = InFlightTasks(), asyncio.Lock()
        self._pausable: list[tuple[Readiness, RabbitSubscriber]] = []
        self.cancellations = CancellationRegistry()

    def add_actor(self, actor: Actor, handler: Handler, readiness: Readiness) -> None:
        resources = self._resources
        inbox = resources.inbox if actor.deduplicate else NullInbox(resources.pool)
        consumer = DeliveryConsumer(actor, handler, inbox, resources.publisher, self.cancellations, self._settings, self._crash_retry_lock)
        queue, track = quorum_queue(actor.queue, actor.binding_keys[0]), self._in_flight.track
        subscriber = subscribe(self._broker, queue, consumer.on_message, prefetch=actor.prefetch, track=track, actor=actor)
        self._pausable.append((readiness, subscriber))
        self._health.checks[f"queue:{actor.step}"] = queue_check(resources.publisher, actor.queue, subscriber, readiness.pause_reason)

    def add_adapter(self, adapter: Adapter) -> None:
        consumer = AdapterConsumer(adapter, self._resources.publisher, self._settings.worker, self._settings.max_body_bytes)
        queue, track = foreign_queue(adapter.queue), self._in_flight.track
        subscriber = subscribe(self._broker, queue, consumer.on_message, prefetch=adapter.prefetch, track=track)
        self._health.checks[f"queue:{adapter.name}"] = queue_check(self._resources.publisher, adapter.queue, subscriber)

    def add_dead_letter_queue(self, name: str, on_message: OnMessage, *, prefetch: int, foreign: bool) -> None:
        queue = foreign_queue(name, declare=False) if foreign else quorum_queue(name)
        subscriber = subscribe(self._broker, queue, on_message, prefetch=prefetch, track=self._in_flight.track)
        self._health.checks[f"queue:{name.removeprefix(work_queue(''))}"] = queue_check(self._resources.publisher, name, subscriber)

    @asynccontextmanager
    async def consume(self) -> AsyncIterator[None]:
        """Consume inside the block. Then cancel the consumers first and let running deliveries finish; unfinished ones are redelivered."""
        try:
            await self._broker.start()
            async with apply_readiness(self._pausable):
                yield
        finally:
            await stop_consuming(self._broker)
            unfinished = await self._in_flight.drain(self._settings.grace_seconds)
            await self._broker.stop()
            log.info("actors.stopped", unfinished=unfinished)
