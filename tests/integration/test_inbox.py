"""The inbox on a real Postgres: lost responses, duplicate deliveries, and connections that time out or are reset."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import asyncpg
import pytest
from pydantic import SecretStr

from bus.persistence.inbox import LIVENESS_LOCK_CLASS, SCHEMA, DoneMessage, OwnershipLost, PostgresInbox, open_inbox
from bus.persistence.kept_connection import KeptConnection
from bus.persistence.pool import apply_schemas, open_pool, stateless_connection
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.settings import BusSettings
from contracts.wire import Result
from ops.local.postgres import EmbeddedPostgres
from tests.support.tcp_proxy import TcpProxy, open_proxy


class LostCommitPool:
    """A pool of one connection that loses the next `losses` responses after the server has committed the statement."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool, self.losses = pool, 0

    async def acquire(self) -> Any:
        self._connection = await self._pool.acquire()
        return self

    async def release(self, _: Any) -> None:
        await self._pool.release(self._connection)

    def mark_clean(self) -> None:
        self._connection.mark_clean()

    async def fetch(self, *statement: Any) -> Any:
        rows = await self._connection.fetch(*statement)
        if self.losses:
            self.losses -= 1
            raise ConnectionResetError("the response was lost")
        return rows

    def get_idle_size(self) -> int:
        return 0

    def get_size(self) -> int:
        return 1

    get_max_size = get_size


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(bus_settings) as pool:
        assert pool is not None
        await apply_schemas(pool, [SCHEMA])
        yield pool


class InboxResult(Result):
    value: str


@pytest.fixture
async def locks(database_url: str) -> AsyncIterator[SessionLocks]:
    locks = SessionLocks(lambda: connect_session(database_url))
    yield locks
    await locks.close()


@pytest.fixture
async def inbox(pool: asyncpg.Pool, locks: SessionLocks) -> AsyncIterator[PostgresInbox]:
    async with open_inbox(pool, locks) as inbox:
        assert isinstance(inbox, PostgresInbox)
        yield inbox


async def test_acquire_with_lost_response_is_repeated(pool: asyncpg.Pool, inbox: PostgresInbox) -> None:
    """Otherwise the message would wait for ever for its live owner: this process."""
    lossy_pool = LostCommitPool(pool)
    inbox._kept = KeptConnection(cast("asyncpg.Pool", lossy_pool))
    lossy_pool.losses = 2
    entry = await asyncio.wait_for(inbox.acquire("echo", "lost-response", "job"), 5)
    assert (entry.result, entry.crash_count, lossy_pool.losses) == (None, 0, 0)


@pytest.mark.parametrize("count", [1, 5])
async def test_results_whose_response_is_lost_are_done(pool: asyncpg.Pool, inbox: PostgresInbox, count: int) -> None:
    """The statement is repeated, and finds that its messages have no owner any more. That is no lost ownership."""
    ids = [f"result-{count}-{number}" for number in range(count)]
    await asyncio.gather(*(inbox.acquire("echo", entry_id, "job") for entry_id in ids))
    lossy_pool = LostCommitPool(pool)
    inbox._kept = KeptConnection(cast("asyncpg.Pool", lossy_pool))
    lossy_pool.losses = 1
    await asyncio.wait_for(asyncio.gather(*(inbox.mark_done("echo", entry_id, InboxResult(value="a"), None) for entry_id in ids)), 10)
    stored = await pool.fetch("select result from atelier.inbox where message_id = any($1::text[])", ids)
    assert (lossy_pool.losses, [row["result"] for row in stored]) == (0, [{"value": "a"}] * count)


async def test_own_write_whose_response_is_lost_is_written_once(inbox: PostgresInbox, monkeypatch: pytest.MonkeyPatch) -> None:
    mark_done_with = inbox._mark_done_with
    writes: list[int] = []

    async def lose_first_response(message: DoneMessage, write: Any) -> bool:
        began = len(writes)
        owned = await mark_done_with(message, write)
        if len(writes) > began:
            raise ConnectionResetError("the response was lost")
        return owned

    async def write(connection: asyncpg.Connection) -> None:
        writes.append(await connection.fetchval("select 1"))

    monkeypatch.setattr(inbox, "_mark_done_with", lose_first_response)
    await inbox.acquire("echo", "own-write", "job")
    await asyncio.wait_for(inbox.mark_done("echo", "own-write", InboxResult(value="a"), write), 10)
    assert writes == [1]


async def test_other_result_of_a_message_that_is_done_is_lost_ownership(inbox: PostgresInbox) -> None:
    await inbox.acquire("echo", "other-result", "job")
    await inbox.mark_done("echo", "other-result", InboxResult(value="a"), None)
    with pytest.raises(OwnershipLost):
        await inbox.mark_done("echo", "other-result", InboxResult(value="b"), None)


async def test_duplicate_delivery_in_process_waits_for_result(inbox: PostgresInbox) -> None:
    await inbox.acquire("echo", "twice", "job")
    second = asyncio.create_task(inbox.acquire("echo", "twice", "job"))
    await asyncio.sleep(0.1)
    assert not second.done()
    await inbox.mark_done("echo", "twice", InboxResult(value="once"), None)
    assert (await asyncio.wait_for(second, 5)).result == {"value": "once"}


async def test_duplicate_delivery_acquires_released_message(inbox: PostgresInbox) -> None:
    await inbox.acquire("echo", "released", "job")
    second = asyncio.create_task(inbox.acquire("echo", "released", "job"))
    await asyncio.sleep(0.05)
    await inbox.release("echo", "released")
    assert (await asyncio.wait_for(second, 5)).result is None


async def test_cancelled_waiter_leaves_no_in_flight_key(inbox: PostgresInbox) -> None:
    await inbox.acquire("echo", "cancelled-waiter", "job")
    second = asyncio.create_task(inbox.acquire("echo", "cancelled-waiter", "job"))
    await asyncio.sleep(0.05)
    second.cancel()
    await inbox.release("echo", "cancelled-waiter")
    assert (await asyncio.wait_for(inbox.acquire("echo", "cancelled-waiter", "job"), 5)).result is None


async def test_message_with_many_former_entries_is_recognised(pool: asyncpg.Pool, inbox: PostgresInbox) -> None:
    """In a group as well, whose statement has room for two of a message."""
    await pool.execute("insert into atelier.inbox values ('echo', 'former-4', null, $1, now())", {"value": "a"})
    former_ids = [f"former-{number}" for number in range(5)]
    known, new = await asyncio.gather(inbox.acquire("echo", "many", "job", former_ids), inbox.acquire("echo", "beside-many", "job"))
    assert (known.result, known.former, new.result) == ({"value": "a"}, True, None)


async def test_check_of_a_dead_process_is_no_sign_of_life(database_url: str, inbox: PostgresInbox, locks: SessionLocks) -> None:
    """Who checks whether a process lives takes the shared form of its lock for a moment, once the lock is free."""
    check = f"select pg_try_advisory_xact_lock_shared({LIVENESS_LOCK_CLASS}, {inbox.owner})"
    await inbox.acquire("echo", "of-the-dead", "job")
    checking = await asyncpg.connect(database_url)
    async with checking.transaction():
        assert await checking.fetchval(check) is False
        await locks.close()
        while not await checking.fetchval(check):
            await asyncio.sleep(0.001)
        assert not await inbox._is_lock_visible()
        assert await inbox.crash_count("echo", "of-the-dead", 1) == 1
    await checking.close()


async def test_message_of_live_process_is_not_acquired(pool: asyncpg.Pool, inbox: PostgresInbox, locks: SessionLocks) -> None:
    await inbox.acquire("echo", "owned", "job")
    async with open_inbox(pool, locks) as other:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.acquire("echo", "owned", "job"), 0.5)


@pytest.fixture
async def silent_connection(postgres: EmbeddedPostgres, bus_settings: BusSettings) -> AsyncIterator[tuple[TcpProxy, BusSettings]]:
    async with open_proxy(postgres.identity.port) as proxy:
        url = SecretStr(postgres.url.replace(f":{postgres.identity.port}/", f":{proxy.port}/"))
        yield proxy, bus_settings.model_copy(update={"database_url": url, "database_pool_size": 1})


async def test_unanswered_statement_times_out_and_replaces_connection(
    silent_connection: tuple[TcpProxy, BusSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-open connection: the server responds neither to the statement nor to its cancellation."""
    proxy, settings = silent_connection
    monkeypatch.setattr("bus.persistence.pool.STATEMENT_TIMEOUT_SECONDS", 0.5)
    async with asyncio.timeout(20), open_pool(settings) as pool:
        assert pool is not None
        assert await pool.fetchval("select 1") == 1
        proxy.flow_enabled.clear()
        with pytest.raises((TimeoutError, asyncpg.InterfaceError, OSError)):
            await pool.fetchval("select 2")
        proxy.flow_enabled.set()
        proxy.abort_connections()
        assert await pool.fetchval("select 3") == 3


async def test_connection_is_reset_unless_single_statement(bus_settings: BusSettings) -> None:
    """A session lock that a user of the connection left is released; a stateless statement costs no reset."""
    held = "select count(*) from pg_locks where locktype = 'advisory' and classid = 77 and pid = pg_backend_pid()"
    small = BusSettings.model_validate(bus_settings.model_dump() | {"database_pool_size": 1})
    async with open_pool(small) as pool:
        assert pool is not None
        async with stateless_connection(pool) as connection:
            await connection.execute("select pg_advisory_lock(77, 1)")
        assert await pool.fetchval(held) == 1, "not reset: it was used as a stateless connection"
        assert await pool.fetchval(held) == 0, "reset after the statement before this one"
