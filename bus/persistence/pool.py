"""The database pool that the inbox and the actors share, its JSON codecs, and the schemas that are applied at start."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from pydantic_core import from_json, to_json

from bus.retry import retry_while_unavailable
from bus.settings import BusSettings

CLOSE_TIMEOUT_SECONDS = 3.0
STATEMENT_TIMEOUT_SECONDS = 20.0
"""After this time the server counts as gone: the connection is closed, and the statement can be repeated on another."""
SCHEMA_LOCK_ID = 4_273_001
"""Advisory lock: processes that start at the same time apply the schemas one after another."""


@asynccontextmanager
async def open_pool(settings: BusSettings) -> AsyncIterator[asyncpg.Pool | None]:
    """A pool, or None without DATABASE_URL. JSON columns are read and written as Python values."""
    if (url := settings.postgres_url) is None:
        yield None
        return
    pool = await retry_while_unavailable(lambda: _create_pool(url, settings.database_pool_size), "database")
    try:
        yield pool
    finally:
        await _close(pool)


async def _close(pool: asyncpg.Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), CLOSE_TIMEOUT_SECONDS)
    except TimeoutError:
        pool.terminate()


async def _create_pool(url: str, size: int) -> asyncpg.Pool:
    class PooledConnection(asyncpg.Connection):  # type: ignore[misc]
        """After a time-out on one connection every connection of the pool is replaced before it is used again."""

        __slots__ = ("is_clean",)

        def mark_clean(self) -> None:
            self.is_clean = True

        async def execute(self, *statement: Any, **options: Any) -> str:
            return str(await expire_on_timeout(super().execute(*statement, **options)))

        async def fetch(self, *statement: Any, **options: Any) -> Any:
            return await expire_on_timeout(super().fetch(*statement, **options))

        async def fetchrow(self, *statement: Any, **options: Any) -> Any:
            return await expire_on_timeout(super().fetchrow(*statement, **options))

        async def fetchval(self, *statement: Any, **options: Any) -> Any:
            return await expire_on_timeout(super().fetchval(*statement, **options))

    async def expire_on_timeout(statement: Awaitable[Any]) -> Any:
        try:
            return await statement
        except TimeoutError:
            await pool.expire_connections()
            raise

    async def reset_unless_clean(connection: PooledConnection) -> None:
        if not getattr(connection, "is_clean", False):
            await connection.execute(connection.get_reset_query())
        connection.is_clean = False

    pool: asyncpg.Pool = asyncpg.create_pool(
        url,
        min_size=1,
        max_size=size,
        init=set_json_codecs,
        reset=reset_unless_clean,
        command_timeout=STATEMENT_TIMEOUT_SECONDS,
        connection_class=PooledConnection,
    )
    return await pool


@asynccontextmanager
async def stateless_connection(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection for statements that leave no session state, neither locks nor settings: its release needs no reset round trip."""
    async with pool.acquire() as connection:
        connection.mark_clean()
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
    """Execute each schema (idempotent DDL), one process at a time."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", SCHEMA_LOCK_ID)
        await connection.execute("set local client_min_messages = warning")
        for schema in schemas:
            await connection.execute(schema)
