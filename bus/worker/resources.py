"""The resources of a worker: publisher, database pool, inbox and claim store."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from asyncpg import Pool

from bus.amqp.publisher import Publisher, open_publisher
from bus.observability.health import HealthCheck
from bus.observability.health_checks import broker_check, database_check, report_store, store_check
from bus.persistence import installation_secret
from bus.persistence.inbox import SCHEMA, Inbox, open_inbox, purge_inbox_loop
from bus.persistence.pool import apply_schemas, open_pool
from bus.persistence.server_check import find_database
from bus.persistence.session_locks import SessionLocks, open_session_locks
from bus.settings import BusSettings
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings


@dataclass(frozen=True)
class WorkerResources:
    publisher: Publisher
    pool: Pool | None
    locks: SessionLocks | None
    inbox: Inbox
    claims: ClaimStore

    @property
    def health_checks(self) -> dict[str, HealthCheck]:
        checks = {"broker": broker_check(self.publisher), "store": store_check(self.claims)}
        return checks | ({"database": database_check(self.pool)} if self.pool else {})


@asynccontextmanager
async def open_resources(settings: BusSettings, store_settings: StoreSettings, schemas: Iterable[str]) -> AsyncIterator[WorkerResources]:
    """Open the resources in order, close them in reverse. `schemas`: idempotent DDL beside the inbox's own."""
    async with open_database(settings) as (pool, locks), open_publisher(settings) as publisher:
        if pool:
            await apply_schemas(pool, [SCHEMA, installation_secret.SCHEMA, *schemas])
        await installation_secret.use_installation_secret(settings, pool)
        async with (
            open_inbox(pool, locks) as inbox,
            purge_inbox_loop(inbox, settings.inbox_retention_days),
            open_claim_store(store_settings) as claims,
            report_store(claims),
        ):
            yield WorkerResources(publisher, pool, locks, inbox, claims)


@asynccontextmanager
async def open_database(settings: BusSettings) -> AsyncIterator[tuple[Pool | None, SessionLocks | None]]:
    """The pool and the locks; None without DATABASE_URL. Raises PermanentError for a database that cannot serve."""
    server = await find_database(settings)
    async with open_session_locks(settings, server) as locks, open_pool(settings, server) as pool:
        yield pool, locks
