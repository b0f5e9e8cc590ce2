"""What the routes share: settings, connections to the broker and the store, and the clients that use them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from fastapi import Request

from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.request_reply import open_request_client
from bus.amqp.revocations import receive_revocations
from bus.amqp.subscriptions import JobSubscription, open_job_subscription
from bus.amqp.topology import declare_command_queues_if_permitted
from bus.observability.health import Health
from bus.observability.health_checks import broker_check, store_check
from bus.settings import BusSettings
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from gateway.commands import CommandClient
from gateway.jobs.submission import JobService
from gateway.memory_budget import MemoryBudget
from gateway.middleware.sessions import Sessions
from gateway.problems import HttpProblem
from gateway.settings import GatewaySettings
from gateway.text.status import TextStatusCache


@dataclass
class Services:
    settings: GatewaySettings
    sessions: Sessions
    publisher: Publisher
    subscription: JobSubscription
    commands: CommandClient
    jobs: JobService
    text_status: TextStatusCache
    store: ClaimStore | None = None
    open_streams: int = 0
    """Event streams that are being sent."""
    file_memory: MemoryBudget = field(init=False)
    """For the files of responses, until they have been sent."""

    def __post_init__(self) -> None:
        self.file_memory = MemoryBudget(max(self.settings.file_memory_bytes, 2 * self.settings.max_file_bytes), "files")

    def require_store(self) -> ClaimStore:
        """Raises HttpProblem(503) when the gateway runs without one."""
        if self.store is None:
            raise HttpProblem(503, "store-missing", "this gateway has no store: set STORE_URL as the actors have it")
        return self.store


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


@asynccontextmanager
async def open_services(
    bus: BusSettings, settings: GatewaySettings, store: StoreSettings | None, sessions: Sessions, health: Health, steps: tuple[str, ...]
) -> AsyncIterator[Services]:
    """Connect, and declare the queues of `steps`, so that a command can be published before its worker runs."""
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(open_publisher(bus))
        health.checks["broker"] = broker_check(publisher)
        async with publisher.channel() as channel:
            await declare_command_queues_if_permitted(channel, steps)
        commands = CommandClient(await stack.enter_async_context(open_request_client(publisher)), settings)
        subscription = await stack.enter_async_context(open_job_subscription(publisher))
        await stack.enter_async_context(receive_revocations(publisher, sessions.revoke))
        services = Services(
            settings=settings,
            sessions=sessions,
            publisher=publisher,
            subscription=subscription,
            commands=commands,
            jobs=JobService(commands, publisher, subscription),
            text_status=TextStatusCache(commands),
            store=await stack.enter_async_context(open_claim_store(store)) if store else None,
        )
        if services.store:
            health.checks["store"] = store_check(services.store)
        yield services
