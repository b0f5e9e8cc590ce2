"""The database pool, opened here and lent to actors; and the tables, made on start."""

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
"""A statement that takes longer has nobody at the other end: its line is given up, and it is tried again on another."""
SCHEMA_LOCK_ID = 4_273_001
"""Advisory lock: processes that start together make the tables one after another."""


@asynccontextmanager
async def open_pool(settings: BusSettings) -> AsyncIterator[asyncpg.Pool | None]:
    """A pool, or None when no DATABASE_URL is set. JSON columns take and give Python values."""
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
        """When one line is silent for too long, the others of the pool may be, too: each is replaced before it is used again."""

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

    async def expire_on_timeout(answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except TimeoutError:
            await pool.expire_connections()
            raise

    async def reset_unless_clean(line: PooledConnection) -> None:
        if not getattr(line, "is_clean", False):
            await line.execute(line.get_reset_query())
        line.is_clean = False

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
    """A line for a statement that leaves nothing in its session, no lock and no setting: to give it back takes no round trip of its own."""
    async with pool.acquire() as line:
        line.mark_clean()
        yield line


async def set_json_codecs(connection: asyncpg.Connection) -> None:
    for kind in ("json", "jsonb"):
        await connection.set_type_codec(kind, encoder=encode_postgres_json, decoder=from_json, schema="pg_catalog")


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def encode_postgres_json(value: Any) -> str:
    """JSON as Postgres takes it: it refuses the character U+0000, which becomes U+FFFD, the sign for one that is lost."""
    text = to_json(value, inf_nan_mode="constants").decode()
    return _NUL.sub(r"\1\\ufffd", text) if "\\u0000" in text else text


async def apply_schemas(pool: asyncpg.Pool, schemas: Iterable[str]) -> None:
    """Run each schema text (idempotent DDL), one process at a time."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", SCHEMA_LOCK_ID)
        await connection.execute("set local client_min_messages = warning")
        for schema in schemas:
            await connection.execute(schema)
