"""The database pool, opened here and lent to actors; and the tables, made on start."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from pydantic_core import from_json, to_json

from bus.patience import until_back
from bus.settings import BusSettings

CLOSE_SECONDS = 3.0
STATEMENT_SECONDS = 20.0
"""A statement that takes longer has nobody at the other end: its line is given up, and it is tried again on another."""
SCHEMA_LOCK = 4_273_001
"""Advisory lock: processes that start together make the tables one after another."""


@asynccontextmanager
async def open_database(settings: BusSettings) -> AsyncIterator[asyncpg.Pool | None]:
    """A pool, or None when no DATABASE_URL is set. JSON columns take and give Python values."""
    if (url := settings.postgres_url) is None:
        yield None
        return
    pool = await until_back(lambda: _open(url, settings.database_pool_size), "database")
    try:
        yield pool
    finally:
        await _close(pool)


async def _close(pool: asyncpg.Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), CLOSE_SECONDS)
    except TimeoutError:
        pool.terminate()


async def _open(url: str, size: int) -> asyncpg.Pool:
    class Line(asyncpg.Connection):  # type: ignore[misc]
        """When one line is silent for too long, the others of the pool may be, too: each is replaced before it is used again."""

        __slots__ = ("clean",)

        def leaves_nothing(self) -> None:
            self.clean = True

        async def execute(self, *statement: Any, **how: Any) -> str:
            return str(await doubting(super().execute(*statement, **how)))

        async def fetch(self, *statement: Any, **how: Any) -> Any:
            return await doubting(super().fetch(*statement, **how))

        async def fetchrow(self, *statement: Any, **how: Any) -> Any:
            return await doubting(super().fetchrow(*statement, **how))

        async def fetchval(self, *statement: Any, **how: Any) -> Any:
            return await doubting(super().fetchval(*statement, **how))

    async def doubting(answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except TimeoutError:
            await pool.expire_connections()
            raise

    async def tidied(line: Line) -> None:
        if not getattr(line, "clean", False):
            await line.execute(line.get_reset_query())
        line.clean = False

    pool: asyncpg.Pool = asyncpg.create_pool(
        url, min_size=1, max_size=size, init=speak_json, reset=tidied, command_timeout=STATEMENT_SECONDS, connection_class=Line
    )
    return await pool


@asynccontextmanager
async def one_statement(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A line for a statement that leaves nothing in its session, no lock and no setting: to give it back takes no round trip of its own."""
    async with pool.acquire() as line:
        line.leaves_nothing()
        yield line


async def speak_json(connection: asyncpg.Connection) -> None:
    for kind in ("json", "jsonb"):
        await connection.set_type_codec(kind, encoder=storable_json, decoder=from_json, schema="pg_catalog")


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def storable_json(value: Any) -> str:
    """JSON as Postgres takes it: it refuses the character U+0000, which becomes U+FFFD, the sign for one that is lost."""
    text = to_json(value, inf_nan_mode="constants").decode()
    return _NUL.sub(r"\1\\ufffd", text) if "\\u0000" in text else text


async def make_tables(pool: asyncpg.Pool, schemas: Iterable[str]) -> None:
    """Run each schema text (idempotent DDL), one process at a time."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", SCHEMA_LOCK)
        await connection.execute("set local client_min_messages = warning")
        for schema in schemas:
            await connection.execute(schema)
