"""The locks of a process on PostgreSQL: while their server is away, after a loss, and of a process or machine that is gone.

The reports are public ones, in our words; the server is real.
"""

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import pytest

from actors.llm.conversation_repository import ConversationRepository
from actors.webhook import ACTOR
from actors.webhooks.delivery_lock import SQL as DELIVERY_SQL
from actors.webhooks.delivery_lock import PostgresDeliveryLock
from bus.persistence import session_locks
from bus.persistence.inbox import SCHEMA, open_inbox
from bus.persistence.pool import apply_schemas
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.settings import BusSettings
from bus.worker.resources import open_database
from contracts import broker_names
from contracts.wire import Result
from tests.support.broker_client import BrokerClient, StartWorker, echo_actor
from tests.support.dead_letter_fixtures import FlakyHandler, queue_size
from tests.support.own_database import own_database, with_database
from tests.support.webhook_backend import open_webhook_backend


async def test_one_connection_is_enough(
    bus_settings: BusSettings, database_url: str, broker_client: BrokerClient, start_worker: StartWorker
) -> None:
    """prisma/orm #2520 (`connection_limit=1`): the lock of the process is beside the pool, so a pool of one serves."""
    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    async with asyncio.timeout(20), start_worker(actor, settings=with_database(bus_settings, database_url, database_pool_size=1)):
        for number in range(20):
            await broker_client.publish(actor.step, {"text": str(number)}, reply_to=broker_client.reply_queue)
        assert len([await broker_client.next_reply() for _ in range(20)]) == 20


async def test_interrupted_wait_leaves_no_lock(database_url: str) -> None:
    """ariga/atlas #2447: a lock that its owner cannot release. A caller that is cancelled while it takes the lock leaves none behind."""
    lock, unlock = "select pg_try_advisory_lock(77, $1)", "select pg_advisory_unlock(77, $1)"
    locks, others = (SessionLocks(lambda: connect_session(database_url)) for _ in range(2))

    async def hold() -> None:
        async with locks.hold(lock, unlock, 1):
            await asyncio.sleep(60)

    for _ in range(20):
        task = asyncio.create_task(hold())
        await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5), others.hold(lock, unlock, 1):
        held = await count_locks(database_url)
    await locks.close()
    await others.close()
    assert (held, await count_locks(database_url)) == (1, 0)


async def count_locks(database_url: str) -> int:
    connection = await connect_session(database_url)
    try:
        return int(await connection.fetchval("select count(*) from pg_locks where locktype = 'advisory' and classid = 77 and granted"))
    finally:
        await connection.close()


async def test_server_frees_the_locks_of_a_machine_that_vanished(database_url: str) -> None:
    """dbos-inc/dbos-transact-py #637, liquibase/liquibase #872: without a closed connection a lock is held for hours."""
    locks = SessionLocks(lambda: connect_session(database_url))
    settings = [await locks.fetchval(f"show tcp_keepalives_{name}") for name in ("idle", "interval", "count")]
    assert [int(value) for value in settings] == [30, 10, 3]
    await locks.close()


class Number(Result):
    number: int


async def refuse_connection(*_: object) -> asyncpg.Connection:
    raise ConnectionRefusedError("the direct server is away")


async def end_lock_session(locks: SessionLocks, server: asyncpg.Connection) -> None:
    connection, ended = locks._connection, asyncio.Event()
    assert connection
    connection.add_termination_listener(lambda _: ended.set())
    await server.execute("select pg_terminate_backend($1)", connection.get_server_pid())
    await asyncio.wait_for(ended.wait(), 5)


async def test_locks_are_waited_for_while_their_server_is_away(bus_settings: BusSettings, database_url: str) -> None:
    """DATABASE_DIRECT_URL is away, DATABASE_URL is not: deliveries of a webhook and turns of a conversation wait, and none fails."""
    async with own_database(database_url) as (url, _, server), open_database(with_database(bus_settings, url)) as (pool, locks):
        assert pool
        assert locks
        await apply_schemas(pool, [DELIVERY_SQL["schema"]])
        await locks.fetchval("select 1")
        connect, locks._connect = locks._connect, refuse_connection
        await end_lock_session(locks, server)

        async def deliver() -> None:
            async with PostgresDeliveryLock(pool, locks).acquire("https://backend", 1):
                pass

        async def take_turn() -> None:
            async with ConversationRepository(pool, locks).lock_conversation("c-1"):
                pass

        waiting = [asyncio.create_task(work()) for work in (deliver, deliver, take_turn)]
        assert not (await asyncio.wait(waiting, timeout=0.5))[0]
        locks._connect = connect
        await asyncio.wait_for(asyncio.gather(*waiting), 5)


async def test_webhooks_wait_while_the_direct_server_is_away(
    bus_settings: BusSettings, database_url: str, broker_client: BrokerClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole worker: every webhook became a dead letter within half a second."""
    held = "select pid from pg_locks join pg_database on pg_database.oid = database where locktype = 'advisory' and datname = $1"
    async with open_webhook_backend() as backend, own_database(database_url) as (url, role, server):
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        async with start_worker(ACTOR, settings=with_database(bus_settings, url)):
            dead = await queue_size(broker_client, broker_names.dead_letter_queue(ACTOR.step))
            with monkeypatch.context() as away:
                away.setattr(session_locks, "connect_session", refuse_connection)
                for session in await server.fetch(held, role):
                    await server.execute("select pg_terminate_backend($1)", session["pid"])
                for number in range(5):
                    body = {"kind": "failed", "generation_id": 910_000 + number}
                    await broker_client.publish(ACTOR.step, body, reply_to=broker_client.reply_queue)
                await asyncio.sleep(0.8)
                assert broker_client.replies.empty()
            assert [(await broker_client.next_reply(20))[0] for _ in range(5)] == [f"{ACTOR.step}.done.v1"] * 5
            assert await queue_size(broker_client, broker_names.dead_letter_queue(ACTOR.step)) == dead
        assert len(backend.requests) == 5


async def test_process_without_its_liveness_lock_acquires_nothing(bus_settings: BusSettings, database_url: str) -> None:
    """sidekiq-pro's reaper, graphile/worker: a worker whose sign of life is gone goes on to take work, which another one takes from it."""
    async with own_database(database_url) as (url, _, server), AsyncExitStack() as stack:
        pool, locks = await stack.enter_async_context(open_database(with_database(bus_settings, url)))
        assert pool
        assert locks
        await apply_schemas(pool, [SCHEMA])
        inbox = await stack.enter_async_context(open_inbox(pool, locks))
        other_locks = SessionLocks(lambda: connect_session(url))
        stack.push_async_callback(other_locks.close)
        other = await stack.enter_async_context(open_inbox(pool, other_locks))
        await inbox.acquire("echo", "done", "job")
        await inbox.mark_done("echo", "done", Number(number=1), None)
        connect, locks._connect = locks._connect, refuse_connection
        await end_lock_session(locks, server)
        assert (await asyncio.wait_for(inbox.acquire("echo", "done", "job"), 5)).result == {"number": 1}
        waiting = asyncio.create_task(inbox.acquire("echo", "next", "job"))
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
        entry = await asyncio.wait_for(other.acquire("echo", "next", "job"), 5)
        assert (entry.result, entry.crash_count) == (None, 0)
        await other.release("echo", "next")
        locks._connect = connect
        entry = await asyncio.wait_for(waiting, 5)
        assert (entry.result, entry.crash_count) == (None, 0)


async def test_limit_of_a_statement_is_that_of_its_connection(database_url: str) -> None:
    """The due rows of a foreign database may take longer than a statement of our own tables."""
    connection = await connect_session(database_url, 0.1)
    with pytest.raises(TimeoutError):
        await connection.execute("select pg_sleep(5)")
    connection.terminate()
