"""Databases of their own for tests: a new role that owns a new database on the tests' server, and settings that lead there."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from bus.settings import BusSettings


def with_database(settings: BusSettings, url: str, direct_url: str | None = None, **changes: Any) -> BusSettings:
    return BusSettings.model_validate(settings.model_dump() | {"database_url": url, "database_direct_url": direct_url} | changes)


@asynccontextmanager
async def superuser(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def own_database(database_url: str, *, options: str = "") -> AsyncIterator[tuple[str, str, asyncpg.Connection]]:
    """A new database, owned by a new role without rights beyond it: its URL, the role's name, and the superuser's connection."""
    name = f"report_{uuid4().hex[:8]}"
    async with superuser(database_url) as server:
        await server.execute(f"create role {name} login password 'secret'")
        await server.execute(f"create database {name} owner {name} {options}")
        parts = urlsplit(database_url)
        try:
            yield f"postgresql://{name}:secret@{parts.hostname}:{parts.port}/{name}", name, server
        finally:
            await server.execute(f"drop database {name} with (force)")
            await server.execute(f"drop role {name}")


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda url: url.replace(old, new)


def with_option(option: str) -> Callable[[str], str]:
    return lambda url: f"{url}?{option}"
