"""A worker process: open resources, declare the topology, subscribe, consume until it is stopped, shut down without losing a delivery."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from bus.actor import Actor, Adapter, Handler, ObservableEngine, Resources
from bus.amqp.publisher import Publisher
from bus.amqp.topology import declare_dead_letter_queues, declare_topology
from bus.observability import metrics
from bus.observability.health import Health
from bus.observability.health_server import serve_health
from bus.observability.settings import HealthSettings, TracingSettings
from bus.observability.tracing import open_tracing
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.control import open_control
from bus.worker.pg_listener import PgListener, open_pg_listener
from bus.worker.readiness import Readiness
from bus.worker.resources import WorkerResources, open_resources
from bus.worker.status import StatusReporter
from bus.worker.subscribers import Subscribers
from contracts.steps import COMMANDS

if TYPE_CHECKING:
    from bus.dead_letters.ingest import DeadLetterIngest

log = structlog.get_logger()


async def serve(actors: Sequence[Actor], adapters: Sequence[Adapter | PgListener] = (), ingests: "Sequence[DeadLetterIngest]" = ()) -> None:
    """Run a worker with settings from the environment until SIGTERM or SIGINT; running deliveries then have a grace period to finish.

    A start that waits for a dependency ends at once.
    """
    stop, task = asyncio.Event(), asyncio.current_task()
    worker = Worker(actors, adapters, BusSettings(), StoreSettings(), ingests, HealthSettings())

    def on_signal() -> None:
        if task and not stop.is_set() and not worker.health.started:
            task.cancel()
        stop.set()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, on_signal)
    with open_tracing("-".join(worker.names), TracingSettings(), worker.settings.broker_url):
        try:
            async with worker.run():
                await stop.wait()
                log.info("actors.stopping")
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
            log.info("actors.stopped", unfinished=0, reason="stopped while starting")


class Worker:
    """The actors, adapters, listeners and dead-letter ingests of one process. Without `health_settings` it has no health server."""

    def __init__(
        self,
        actors: Sequence[Actor],
        adapters: Sequence[Adapter | PgListener],
        settings: BusSettings,
        store_settings: StoreSettings,
        ingests: "Sequence[DeadLetterIngest]" = (),
        health_settings: HealthSettings | None = None,
    ) -> None:
        self.actors, self.ingests = actors, ingests
        self.adapters = [adapter for adapter in adapters if isinstance(adapter, Adapter)]
        self.listeners = [adapter for adapter in adapters if isinstance(adapter, PgListener)]
        self.settings, self.store_settings = settings, store_settings
        self.names = [*(actor.step for actor in actors), *(other.name for other in (*adapters, *ingests))]
        self.health = Health(health_settings or HealthSettings(port=None))
        self.readiness = [Readiness(actor.step) for actor in actors]

    @asynccontextmanager
    async def run(self) -> AsyncIterator[str | None]:
        """Consume inside the block. Yields the URL of the health server, None without one."""
        async with AsyncExitStack() as stack:
            health_url = await stack.enter_async_context(serve_health(self.health))
            resources = await stack.enter_async_context(open_resources(self.settings, self.store_settings, self._schemas()))
            self.health.checks |= resources.health_checks
            handlers = await self._open_handlers(resources, stack)
            await self._declare_topology(resources.publisher)
            await self._subscribe(resources, handlers, stack)
            log.info("actors.ready", actors=self.names)
            self.health.started = True
            try:
                yield health_url
            finally:
                self.health.started = False

    def _schemas(self) -> list[str]:
        actors = [actor.schema for actor in self.actors if actor.schema]
        return [*actors, *(ingest.schema for ingest in self.ingests), *(listener.schema for listener in self.listeners if listener.schema)]

    async def _open_handlers(self, resources: WorkerResources, stack: AsyncExitStack) -> list[Handler]:
        shared: dict[Hashable, Any] = {}
        handlers = []
        for actor, readiness in zip(self.actors, self.readiness, strict=True):
            register_engine = self._engine_registrar(actor.step, stack)
            provided = Resources(resources.claims, resources.pool, readiness.set_unready, register_engine, shared, resources.locks)
            handlers.append(await stack.enter_async_context(actor.open(provided)))
        return handlers

    def _engine_registrar(self, step: str, stack: AsyncExitStack) -> Callable[[ObservableEngine], None]:
        """Adds the engine of an actor to health checks and metrics."""

        def register_engine(engine: ObservableEngine) -> None:
            self.health.checks[f"engine:{step}"] = engine.unavailable_reason
            stack.enter_context(metrics.ENGINES.register(step, engine))

        return register_engine

    async def _declare_topology(self, publisher: Publisher) -> None:
        async with publisher.channel() as channel:
            await declare_topology(channel, self.actors, self.adapters, COMMANDS, self.settings.delay_queue_seconds)
            for ingest in self.ingests:
                await declare_dead_letter_queues(channel, *ingest.queues)

    async def _subscribe(self, resources: WorkerResources, handlers: Sequence[Handler], stack: AsyncExitStack) -> None:
        """Start consuming; leaving the stack ends it."""
        publisher, settings = resources.publisher, self.settings
        subscribers = Subscribers(f"{settings.worker} {'+'.join(self.names)}", settings, resources, self.health)
        status = StatusReporter(settings.worker, self.actors, self.readiness, self.health)
        await stack.enter_async_context(open_control(publisher, resources.inbox, subscribers.cancellations, status.report))
        for actor, handler, readiness in zip(self.actors, handlers, self.readiness, strict=True):
            subscribers.add_actor(actor, handler, readiness)
        for adapter in self.adapters:
            subscribers.add_adapter(adapter)
        for listener in self.listeners:
            await stack.enter_async_context(open_pg_listener(listener, settings, publisher))
        for ingest in self.ingests:
            from bus.dead_letters.ingest import open_ingest  # here, since one process of many has an ingest, and it takes 1 MB

            callbacks = await stack.enter_async_context(open_ingest(ingest, resources.pool, publisher))
            for queue, on_message in callbacks.items():
                subscribers.add_dead_letter_queue(queue, on_message, prefetch=ingest.prefetch, foreign=queue in ingest.foreign_queues)
        await stack.enter_async_context(subscribers.consume())
