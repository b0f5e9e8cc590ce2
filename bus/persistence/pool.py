"""The database pool that the inbox and the actors share, its JSON codecs, and the schemas that are applied at start.

Behind a pooler in transaction mode each transaction gets another session: statements are not prepared, and no session is reset.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import structlog
from pydantic_core import from_json, to_json

from bus.errors import PermanentError
from bus.persistence.database_url import without_connect_timeout
from bus.persistence.server_check import CONNECT_TIMEOUT_SECONDS, DatabaseServer, find_database
from bus.retry import retry_while_unavailable
from bus.settings import BusSettings

CLOSE_TIMEOUT_SECONDS = 3.0
STATEMENT_TIMEOUT_SECONDS = 20.0
"""After this time the server counts as gone: the connection is closed, and the statement can be repeated on another."""
SCHEMA_TIMEOUT_SECONDS = 1800.0
"""The first start of a release may create an index of a table with many rows; other processes that start meanwhile wait as long."""
IDLE_SECONDS = 120.0
"""An unused connection is closed by then: firewalls and load balancers of clouds drop one silently after 240 or 350 seconds."""
PREPARED_STATEMENTS = 100
SERIALIZATION_ATTEMPTS = 5
SCHEMA_LOCK_ID = 4_273_001
"""Advisory lock: processes that start at the same time apply the schemas one after another."""

log = structlog.get_logger()


@asynccontextmanager
async def open_pool(settings: BusSettings, server: DatabaseServer | None = None) -> AsyncIterator[asyncpg.Pool | None]:
    """A pool on `server`, by default that of DATABASE_URL; None without either. JSON columns are read and written as Python values."""
    if (server := server or await find_database(settings)) is None:
        yield None
        return
    pool = await retry_while_unavailable(lambda: _create_pool(server, settings.database_pool_size), "database")
    try:
        yield pool
    finally:
        await _close(pool)


async def _close(pool: asyncpg.Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), CLOSE_TIMEOUT_SECONDS)
    except TimeoutError:
        pool.terminate()


async def _create_pool(server: DatabaseServer, size: int) -> asyncpg.Pool:
    class PooledConnection(asyncpg.Connection):  # type: ignore[misc]
        """After a time-out on one connection, or when its server became a replica, every connection of the pool is replaced before its use.

        A transaction sees what others have committed meanwhile, whatever the isolation that is the server's default.
        """

        __slots__ = ("generation", "is_clean")
        newest_generation = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.generation = PooledConnection.newest_generation

        def is_expired(self) -> bool:
            return self.generation != PooledConnection.newest_generation

        def mark_clean(self) -> None:
            self.is_clean = True

        def transaction(self, *, isolation: str | None = "read_committed", readonly: bool = False, deferrable: bool = False) -> Any:
            return super().transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)

        async def execute(self, *statement: Any, **options: Any) -> str:
            return str(await run(self, lambda: super(PooledConnection, self).execute(*statement, **options)))

        async def fetch(self, *statement: Any, **options: Any) -> Any:
            return await run(self, lambda: super(PooledConnection, self).fetch(*statement, **options))

        async def fetchrow(self, *statement: Any, **options: Any) -> Any:
            return await run(self, lambda: super(PooledConnection, self).fetchrow(*statement, **options))

        async def fetchval(self, *statement: Any, **options: Any) -> Any:
            return await run(self, lambda: super(PooledConnection, self).fetchval(*statement, **options))

        async def fetchmany(self, *statement: Any, **options: Any) -> Any:
            return await run(self, lambda: super(PooledConnection, self).fetchmany(*statement, **options))

        async def executemany(self, *statement: Any, **options: Any) -> Any:
            return await run(self, lambda: super(PooledConnection, self).executemany(*statement, **options))

    async def run(connection: PooledConnection, statement: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await repeat_conflicts(connection, statement)
        except (TimeoutError, asyncpg.ReadOnlySQLTransactionError):
            await pool.expire_connections()
            PooledConnection.newest_generation += 1
            raise

    async def reset_unless_clean(connection: PooledConnection) -> None:
        if not server.shares_sessions and not getattr(connection, "is_clean", False):
            await connection.execute(connection.get_reset_query())
        connection.is_clean = False

    dsn, connect_timeout = without_connect_timeout(server.url, CONNECT_TIMEOUT_SECONDS)
    pool: asyncpg.Pool = asyncpg.create_pool(
        dsn,
        min_size=1,
        max_size=size,
        init=set_json_codecs,
        reset=reset_unless_clean,
        max_inactive_connection_lifetime=IDLE_SECONDS,
        timeout=connect_timeout,
        command_timeout=STATEMENT_TIMEOUT_SECONDS,
        connection_class=PooledConnection,
        statement_cache_size=0 if server.shares_sessions else PREPARED_STATEMENTS,
    )
    return await pool


async def repeat_conflicts(connection: asyncpg.Connection, statement: Callable[[], Awaitable[Any]]) -> Any:
    """Run a statement, again when it lost against a concurrent one. Inside a transaction, which has failed as a whole, it is raised."""
    for attempt in range(1, SERIALIZATION_ATTEMPTS):
        try:
            return await statement()
        except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
            if connection.is_in_transaction():
                raise
        await asyncio.sleep(0.02 * attempt)
    return await statement()


@asynccontextmanager
async def stateless_connection(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection for statements that leave no session state, neither locks nor settings: its release needs no reset round trip."""
    async with pool.acquire() as connection:
        connection.mark_clean()
        try:
            yield connection
        except TimeoutError:
            connection.terminate()  # otherwise its release waits until a server that does not respond confirms the cancellation
            raise


@asynccontextmanager
async def snapshot(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose statements read one state of the database, without what others commit meanwhile."""
    async with stateless_connection(pool) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        yield connection


async def set_json_codecs(connection: asyncpg.Connection) -> None:
    for type_name in ("json", "jsonb"):
        await connection.set_type_codec(type_name, encoder=encode_postgres_json, decoder=from_json, schema="pg_catalog")


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def encode_postgres_json(value: Any) -> str:
    """JSON as Postgres accepts it: the character U+0000, which it rejects, becomes U+FFFD, the replacement character."""
    text = to_json(value, inf_nan_mode="constants").decode()
    return _NUL.sub(r"\1\\ufffd", text) if "\\u0000" in text else text


async def apply_schemas(pool: asyncpg.Pool, schemas: Iterable[str]) -> None:
    """Execute each schema (idempotent DDL), one process at a time. Raises PermanentError("database-refused") without the right to."""
    statements = list(schemas)
    try:
        await retry_while_unavailable(lambda: _apply_schemas(pool, statements), "database")
    except asyncpg.InsufficientPrivilegeError as error:
        cure = (
            "grant the user of DATABASE_URL `create on database` and `create on schema public`, or let the owner of the tables start once"
        )
        raise PermanentError("database-refused", f"DATABASE_URL: our tables cannot be created, {error}: {cure}") from None


async def _apply_schemas(pool: asyncpg.Pool, schemas: Iterable[str]) -> None:
    async with pool.acquire() as connection, connection.transaction():
        if not await connection.fetchval("select pg_try_advisory_xact_lock($1)", SCHEMA_LOCK_ID):
            log.info("database.schemas_waiting", reason="another process applies them")
            await connection.execute("select pg_advisory_xact_lock($1)", SCHEMA_LOCK_ID, timeout=SCHEMA_TIMEOUT_SECONDS)
        await connection.execute("set local client_min_messages = warning")
        for schema in schemas:
            await connection.execute(schema, timeout=SCHEMA_TIMEOUT_SECONDS)
