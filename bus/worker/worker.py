"""Run actors in this process until SIGTERM or SIGINT: open what they need, take deliveries, then leave without losing any."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from aio_pika.abc import AbstractIncomingMessage
from faststream.rabbit import RabbitBroker

from bus.actor import Actor, Adapter, Engine, Resources
from bus.amqp.broker import OnMessage, create_broker, stop_consuming, subscribe_actor, subscribe_dead_letters, subscribe_foreign
from bus.amqp.publisher import open_publisher
from bus.amqp.topology import declare_dead_letter_queues, declare_topology
from bus.dead_letters.ingest import DeadLetterIngest, open_ingest
from bus.observability import metrics
from bus.observability.health import Health
from bus.observability.health_checks import broker_check, database_check, queue_check, store_check
from bus.observability.health_server import serve_health
from bus.observability.settings import HealthSettings, TracingSettings
from bus.observability.tracing import open_tracing
from bus.persistence.inbox import SCHEMA, Inbox, NullInbox, PostgresInbox, open_inbox
from bus.persistence.pool import apply_schemas, open_pool
from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from bus.worker.adapter import AdapterConsumer
from bus.worker.cancellation import CancellationRegistry
from bus.worker.consumer import DeliveryConsumer
from bus.worker.control import open_control
from bus.worker.pg_listener import PgListener, open_pg_listener
from bus.worker.readiness import Readiness, apply_readiness
from bus.worker.status import StatusReporter
from contracts import broker_names
from contracts.steps import COMMANDS

log = structlog.get_logger()

PURGE_INTERVAL_SECONDS = 3600.0


@dataclass
class InFlightTasks:
    """The deliveries at work."""

    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def track(self, on_message: Callable[[AbstractIncomingMessage], Coroutine[Any, Any, None]]) -> OnMessage:
        """Each delivery in a task of our own: the library cancels its own when the connection breaks, and work that was begun shall be
        finished and remembered. The message comes again, and is answered from the inbox.
        """

        async def tracked(message: AbstractIncomingMessage) -> None:
            task = asyncio.create_task(on_message(message))
            self.tasks.add(task)
            task.add_done_callback(self._on_done)

        return tracked

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("delivery.unfinished", error=repr(error), meaning="the broker has it still, and gives it to the next connection")

    async def drain(self, grace_seconds: float) -> int:
        """Wait for what is at work; cancel what is left after the grace and return how many that were."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_seconds)
        left = set(self.tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5)
        return len(left)


async def serve(actors: Sequence[Actor], adapters: Sequence[Adapter | PgListener] = (), intakes: Sequence[DeadLetterIngest] = ()) -> None:
    """Serve until a signal comes. The consumers are cancelled first; running work then has the grace to finish."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service = "-".join([*(actor.step for actor in actors), *(other.name for other in (*adapters, *intakes))])
    with open_tracing(service, TracingSettings()):
        async with run_worker(actors, adapters, BusSettings(), StoreSettings(), intakes, HealthSettings()):
            await stop.wait()
            log.info("actors.leaving")


@asynccontextmanager
async def run_worker(
    actors: Sequence[Actor],
    adapters: Sequence[Adapter | PgListener],
    settings: BusSettings,
    store_settings: StoreSettings,
    intakes: Sequence[DeadLetterIngest] = (),
    health_settings: HealthSettings = HealthSettings(port=None),  # noqa: B008 - it is frozen
) -> AsyncIterator[str | None]:
    """Everything that the actors need, opened in order and closed in reverse; deliveries come in between. Gives the health server's URL."""
    names = [*(actor.step for actor in actors), *(adapter.name for adapter in adapters), *(intake.name for intake in intakes)]
    doors = [adapter for adapter in adapters if isinstance(adapter, Adapter)]
    triggers = [adapter for adapter in adapters if isinstance(adapter, PgListener)]
    async with AsyncExitStack() as stack:
        health = Health(health_settings)
        health_url = await stack.enter_async_context(serve_health(health))
        outbox = await stack.enter_async_context(open_publisher(settings))
        pool = await stack.enter_async_context(open_pool(settings))
        if pool:
            schemas = [*(actor.schema for actor in actors if actor.schema), *(intake.schema for intake in intakes)]
            schemas.extend(trigger.schema for trigger in triggers)
            await apply_schemas(pool, [SCHEMA, *schemas])
        inbox = await stack.enter_async_context(open_inbox(pool))
        claims = await stack.enter_async_context(open_claim_store(store_settings))
        health.checks |= {"broker": broker_check(outbox), "store": store_check(claims)}
        health.checks |= {"database": database_check(pool)} if pool else {}
        readiness = [Readiness(actor.step) for actor in actors]
        tools = [Resources(claims, pool, said.set_unready, engine_registrar(health, said.step, stack)) for said in readiness]
        handlers = [await stack.enter_async_context(actor.open(lent)) for actor, lent in zip(actors, tools, strict=True)]

        cancellations, running, suspects = CancellationRegistry(), InFlightTasks(), asyncio.Lock()
        async with outbox.channel() as channel:
            await declare_topology(channel, actors, doors, COMMANDS, settings.delay_queue_seconds)
            for intake in intakes:
                await declare_dead_letter_queues(channel, *intake.queues)
        teller = StatusReporter(settings.worker, actors, readiness, health)
        await stack.enter_async_context(open_control(outbox, inbox, cancellations, teller.report))
        broker = create_broker(settings.broker_url, f"{settings.worker} {'+'.join(names)}")
        subscribers = []
        for actor, handle in zip(actors, handlers, strict=True):
            memory: Inbox = inbox if actor.deduplicate else NullInbox(pool)
            counter = DeliveryConsumer(actor, handle, memory, outbox, cancellations, settings, suspects)
            subscribers.append(subscribe_actor(broker, actor, running.track(counter.on_message)))
        for said, subscriber in zip(readiness, subscribers, strict=True):
            queue = broker_names.work_queue(said.step)
            health.checks[f"queue:{said.step}"] = queue_check(outbox, queue, subscriber, partial(getattr, said, "reason"))
        for adapter in doors:
            door = AdapterConsumer(adapter, outbox, settings.worker)
            foreign = subscribe_foreign(broker, adapter.queue, adapter.prefetch, running.track(door.on_message))
            health.checks[f"queue:{adapter.name}"] = queue_check(outbox, adapter.queue, foreign)
        for trigger in triggers:
            await stack.enter_async_context(open_pg_listener(trigger, settings, outbox))
        for intake in intakes:
            receivers = await stack.enter_async_context(open_ingest(intake, pool, outbox))
            for queue, receive in receivers.items():
                dead = subscribe_dead_letters(
                    broker, queue, intake.prefetch, running.track(receive), declare=queue not in intake.foreign_queues
                )
                health.checks[f"queue:{queue.removeprefix(broker_names.work_queue(''))}"] = queue_check(outbox, queue, dead)

        await stack.enter_async_context(purge_inbox_loop(inbox, settings.inbox_retention_days))
        await broker.start()
        log.info("actors.ready", actors=names)
        try:
            async with apply_readiness(list(zip(readiness, subscribers, strict=True))):
                health.started = True
                yield health_url
        finally:
            health.started = False
            await shut_down(broker, running, settings.grace_seconds)


def engine_registrar(health: Health, step: str, stack: AsyncExitStack) -> Callable[[Engine], None]:
    """An actor shows its engine: whether it answers is part of the health, what it counts part of the metrics."""

    def register_engine(engine: Engine) -> None:
        health.checks[f"engine:{step}"] = engine.unavailable_reason
        stack.enter_context(metrics.ENGINES.register(step, engine))

    return register_engine


async def shut_down(broker: RabbitBroker, in_flight: InFlightTasks, grace_seconds: float) -> None:
    """Cancel the consumers first, let running work finish, then close: what is unfinished goes back by itself."""
    await stop_consuming(broker)
    unfinished = await in_flight.drain(grace_seconds)
    await broker.stop()
    log.info("actors.left", unfinished=unfinished)


@asynccontextmanager
async def purge_inbox_loop(inbox: Inbox, days: float) -> AsyncIterator[None]:
    """Delete old outcomes now and then."""

    async def purge_periodically() -> None:
        while isinstance(inbox, PostgresInbox):
            await asyncio.sleep(PURGE_INTERVAL_SECONDS)
            log.info("inbox.forgot", outcomes=await inbox.purge(days))

    task = asyncio.create_task(purge_periodically())
    try:
        yield
    finally:
        task.cancel()
