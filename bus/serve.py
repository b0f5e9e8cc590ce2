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

from bus import metrics
from bus.actor import Actor, Engine, Tools
from bus.adapter import Adapter, AdapterCounter
from bus.broker import Receive, open_broker, stop_consuming, subscribe, subscribe_dead, subscribe_foreign
from bus.cancellations import Cancellations
from bus.control import open_control
from bus.database import make_tables, open_database
from bus.dead_letters.intake import Intake, open_intake
from bus.health import Health
from bus.health_checks import broker_check, database_check, queue_check, store_check
from bus.health_server import open_health
from bus.health_settings import HealthSettings
from bus.inbox import SCHEMA, ForgetfulInbox, Inbox, PostgresInbox, open_inbox
from bus.outbox import open_outbox
from bus.presence import Teller
from bus.readiness import Readiness, open_readiness
from bus.receive import Counter
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from bus.topology import declare_dead, declare_topology
from bus.tracing import open_tracing
from bus.tracing_settings import TracingSettings
from bus.triggers import Trigger, open_trigger
from contracts import channels
from contracts.steps import COMMANDS

log = structlog.get_logger()

FORGET_EVERY_SECONDS = 3600.0


@dataclass
class Running:
    """The deliveries at work."""

    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def counted(self, receive: Callable[[AbstractIncomingMessage], Coroutine[Any, Any, None]]) -> Receive:
        """Each delivery in a task of our own: the library cancels its own when the connection breaks, and work that was begun shall be
        finished and remembered. The message comes again, and is answered from the inbox.
        """

        async def counted(raw: AbstractIncomingMessage) -> None:
            task = asyncio.create_task(receive(raw))
            self.tasks.add(task)
            task.add_done_callback(self._over)

        return counted

    def _over(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("delivery.unfinished", error=repr(error), meaning="the broker has it still, and gives it to the next connection")

    async def finish(self, grace_seconds: float) -> int:
        """Wait for what is at work; cancel what is left after the grace and return how many that were."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_seconds)
        left = set(self.tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5)
        return len(left)


async def serve(actors: Sequence[Actor], adapters: Sequence[Adapter | Trigger] = (), intakes: Sequence[Intake] = ()) -> None:
    """Serve until a signal comes. The consumers are cancelled first; running work then has the grace to finish."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service = "-".join([*(actor.step for actor in actors), *(other.name for other in (*adapters, *intakes))])
    with open_tracing(service, TracingSettings()):
        async with open_workshop(actors, adapters, BusSettings(), StoreSettings(), intakes, HealthSettings()):
            await stop.wait()
            log.info("actors.leaving")


@asynccontextmanager
async def open_workshop(
    actors: Sequence[Actor],
    adapters: Sequence[Adapter | Trigger],
    settings: BusSettings,
    store: StoreSettings,
    intakes: Sequence[Intake] = (),
    health_settings: HealthSettings = HealthSettings(port=None),  # noqa: B008 - it is frozen
) -> AsyncIterator[str | None]:
    """Everything that the actors need, opened in order and closed in reverse; deliveries come in between. Gives the health server's URL."""
    names = [*(actor.step for actor in actors), *(adapter.name for adapter in adapters), *(intake.name for intake in intakes)]
    doors = [adapter for adapter in adapters if isinstance(adapter, Adapter)]
    triggers = [adapter for adapter in adapters if isinstance(adapter, Trigger)]
    async with AsyncExitStack() as stack:
        health = Health(health_settings)
        health_url = await stack.enter_async_context(open_health(health))
        outbox = await stack.enter_async_context(open_outbox(settings))
        pool = await stack.enter_async_context(open_database(settings))
        if pool:
            schemas = [*(actor.schema for actor in actors if actor.schema), *(intake.schema for intake in intakes)]
            schemas.extend(trigger.schema for trigger in triggers)
            await make_tables(pool, [SCHEMA, *schemas])
        inbox = await stack.enter_async_context(open_inbox(pool))
        claims = await stack.enter_async_context(open_claims(store))
        health.parts |= {"broker": broker_check(outbox), "store": store_check(claims)}
        health.parts |= {"database": database_check(pool)} if pool else {}
        readiness = [Readiness(actor.step) for actor in actors]
        tools = [Tools(claims, pool, said.tell, shown_to(health, said.step, stack)) for said in readiness]
        handlers = [await stack.enter_async_context(actor.open(lent)) for actor, lent in zip(actors, tools, strict=True)]

        cancellations, running, suspects = Cancellations(), Running(), asyncio.Lock()
        async with outbox.channel() as channel:
            await declare_topology(channel, actors, doors, COMMANDS, settings.rungs)
            for intake in intakes:
                await declare_dead(channel, *intake.queues)
        teller = Teller(settings.worker, actors, readiness, health)
        await stack.enter_async_context(open_control(outbox, inbox, cancellations, teller.tell))
        broker = open_broker(settings.broker_url, f"{settings.worker} {'+'.join(names)}")
        subscribers = []
        for actor, handle in zip(actors, handlers, strict=True):
            memory: Inbox = inbox if actor.remembers else ForgetfulInbox(pool)
            counter = Counter(actor, handle, memory, outbox, cancellations, settings, suspects)
            subscribers.append(subscribe(broker, actor, running.counted(counter.receive)))
        for said, subscriber in zip(readiness, subscribers, strict=True):
            queue = channels.work_queue(said.step)
            health.parts[f"queue:{said.step}"] = queue_check(outbox, queue, subscriber, partial(getattr, said, "reason"))
        for adapter in doors:
            door = AdapterCounter(adapter, outbox, settings.worker)
            foreign = subscribe_foreign(broker, adapter.queue, adapter.prefetch, running.counted(door.receive))
            health.parts[f"queue:{adapter.name}"] = queue_check(outbox, adapter.queue, foreign)
        for trigger in triggers:
            await stack.enter_async_context(open_trigger(trigger, settings, outbox))
        for intake in intakes:
            receivers = await stack.enter_async_context(open_intake(intake, pool, outbox))
            for queue, receive in receivers.items():
                dead = subscribe_dead(broker, queue, intake.prefetch, running.counted(receive), ours=queue not in intake.foreign)
                health.parts[f"queue:{queue.removeprefix(channels.work_queue(''))}"] = queue_check(outbox, queue, dead)

        await stack.enter_async_context(forgetting(inbox, settings.inbox_retention_days))
        await broker.start()
        log.info("actors.ready", actors=names)
        try:
            async with open_readiness(list(zip(readiness, subscribers, strict=True))):
                health.started = True
                yield health_url
        finally:
            health.started = False
            await leave(broker, running, settings.grace_seconds)


def shown_to(health: Health, step: str, stack: AsyncExitStack) -> Callable[[Engine], None]:
    """An actor shows its engine: whether it answers is part of the health, what it counts part of the metrics."""

    def show(engine: Engine) -> None:
        health.parts[f"engine:{step}"] = engine.away
        stack.enter_context(metrics.ENGINES.shown(step, engine))

    return show


async def leave(broker: RabbitBroker, running: Running, grace_seconds: float) -> None:
    """Cancel the consumers first, let running work finish, then close: what is unfinished goes back by itself."""
    await stop_consuming(broker)
    unfinished = await running.finish(grace_seconds)
    await broker.stop()
    log.info("actors.left", unfinished=unfinished)


@asynccontextmanager
async def forgetting(inbox: Inbox, days: float) -> AsyncIterator[None]:
    """Delete old outcomes now and then."""

    async def forget() -> None:
        while isinstance(inbox, PostgresInbox):
            await asyncio.sleep(FORGET_EVERY_SECONDS)
            log.info("inbox.forgot", outcomes=await inbox.forget(days))

    task = asyncio.create_task(forget())
    try:
        yield
    finally:
        task.cancel()
