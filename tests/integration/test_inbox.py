"""The inbox on a real Postgres: answers that are lost on their way, and two deliveries of one message."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from bus.database import make_tables, one_statement, open_database
from bus.inbox import SCHEMA, PostgresInbox, open_inbox
from bus.settings import BusSettings
from contracts.wire import Result
from ops.local.postgres import EmbeddedPostgres
from tests.chaos.proxy import Proxy, open_proxy


class Forgetful:
    """A pool whose next answer is lost after the server has done what was asked."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool, self.losses = pool, 0

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        async with self._pool.acquire() as self._line:
            yield self

    def leaves_nothing(self) -> None:
        self._line.leaves_nothing()

    async def fetchrow(self, *asked: Any) -> Any:
        answer = await self._line.fetchrow(*asked)
        if self.losses:
            self.losses -= 1
            raise ConnectionResetError("the answer was lost on its way")
        return answer


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_database(bus_settings) as pool:
        assert pool is not None
        await make_tables(pool, [SCHEMA])
        yield pool


class Said(Result):
    said: str


@pytest.fixture
async def inbox(pool: asyncpg.Pool) -> AsyncIterator[PostgresInbox]:
    async with open_inbox(pool) as inbox:
        assert isinstance(inbox, PostgresInbox)
        yield inbox


async def test_a_claim_whose_confirmation_was_lost_is_taken_again(pool: asyncpg.Pool, inbox: PostgresInbox) -> None:
    """Or the message would wait for ever for a living process: this one."""
    inbox._pool = forgetful = Forgetful(pool)
    forgetful.losses = 2
    known = await asyncio.wait_for(inbox.claim("echo", "lost-answer", "job"), 5)
    assert (known.result, known.deaths, forgetful.losses) == (None, 0, 0)


async def test_a_second_delivery_in_this_process_waits_and_hears_the_result(inbox: PostgresInbox) -> None:
    await inbox.claim("echo", "twice", "job")
    second = asyncio.create_task(inbox.claim("echo", "twice", "job"))
    await asyncio.sleep(0.1)
    assert not second.done()
    await inbox.remember("echo", "twice", Said(said="once"), None)
    assert (await asyncio.wait_for(second, 5)).result == {"said": "once"}


async def test_a_second_delivery_gets_what_the_first_released(inbox: PostgresInbox) -> None:
    await inbox.claim("echo", "given-up", "job")
    second = asyncio.create_task(inbox.claim("echo", "given-up", "job"))
    await asyncio.sleep(0.05)
    await inbox.release("echo", "given-up")
    assert (await asyncio.wait_for(second, 5)).result is None


async def test_a_delivery_that_is_cut_off_while_it_waits_leaves_nothing_in_hand(inbox: PostgresInbox) -> None:
    await inbox.claim("echo", "cut-off", "job")
    second = asyncio.create_task(inbox.claim("echo", "cut-off", "job"))
    await asyncio.sleep(0.05)
    second.cancel()
    await inbox.release("echo", "cut-off")
    assert (await asyncio.wait_for(inbox.claim("echo", "cut-off", "job"), 5)).result is None


async def test_what_another_living_process_has_in_hand_is_not_taken(pool: asyncpg.Pool, inbox: PostgresInbox) -> None:
    await inbox.claim("echo", "theirs", "job")
    async with open_inbox(pool) as other:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.claim("echo", "theirs", "job"), 0.5)


@pytest.fixture
async def silent_line(postgres: EmbeddedPostgres, bus_settings: BusSettings) -> AsyncIterator[tuple[Proxy, BusSettings]]:
    async with open_proxy(postgres.identity.port) as proxy:
        url = SecretStr(postgres.url.replace(f":{postgres.identity.port}/", f":{proxy.port}/"))
        yield proxy, bus_settings.model_copy(update={"database_url": url, "database_pool_size": 1})


async def test_a_statement_that_nobody_answers_ends_and_its_line_is_replaced(
    silent_line: tuple[Proxy, BusSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-open line: the server's end is silent, and so it is when asked to stop the statement."""
    proxy, settings = silent_line
    monkeypatch.setattr("bus.database.STATEMENT_SECONDS", 0.5)
    async with asyncio.timeout(20), open_database(settings) as pool:
        assert pool is not None
        assert await pool.fetchval("select 1") == 1
        proxy.flowing.clear()
        with pytest.raises((TimeoutError, asyncpg.InterfaceError, OSError)):
            await pool.fetchval("select 2")
        proxy.flowing.set()
        proxy.cut()
        assert await pool.fetchval("select 3") == 3


async def test_a_line_is_tidied_after_all_but_a_single_statement(bus_settings: BusSettings) -> None:
    """A lock of the session that was left behind is gone for the next who takes the line; a claim costs no such round trip."""
    held = "select count(*) from pg_locks where locktype = 'advisory' and classid = 77 and pid = pg_backend_pid()"
    small = BusSettings.model_validate(bus_settings.model_dump() | {"database_pool_size": 1})
    async with open_database(small) as pool:
        assert pool is not None
        async with one_statement(pool) as line:
            await line.execute("select pg_advisory_lock(77, 1)")
        assert await pool.fetchval(held) == 1, "nothing was tidied: it had been said that nothing was left"
        assert await pool.fetchval(held) == 0, "the statement before this one was no such, and so the line was tidied"
