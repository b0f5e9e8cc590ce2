"""PostgreSQL behind PgBouncer: prepared statements, session locks, LISTEN, few connections, options of the URL, TLS.

The reports are public ones, in our words; the server is real, and so is PgBouncer.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import SecretStr

from actors import ledger
from actors.llm.conversation_repository import SCHEMA as CONVERSATIONS_SCHEMA
from actors.llm.conversation_repository import ConversationRepository, append_turn
from actors.webhook import ACTOR
from bus.actor import TranslatedCommand
from bus.dead_letters.ingest import DeadLetterIngest
from bus.dead_letters.repository import DeadLetterRepository
from bus.errors import PermanentError
from bus.persistence.inbox import SCHEMA, PostgresInbox, open_inbox
from bus.persistence.pool import apply_schemas, open_pool
from bus.persistence.server_check import examine_server
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.pg_listener import PgListener
from bus.worker.resources import open_database
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.conversation import ConversationMessage
from contracts.wire import Result
from ops.commands.doctor_services import check_database
from ops.docgen.settings_catalog import ROOT
from ops.settings import LocalSettings
from tests.support.broker_client import BrokerClient, StartWorker, echo_actor, wait_until
from tests.support.certificates import make_certificates
from tests.support.dead_letter_fixtures import COMPLETION_LISTENER, FlakyHandler, wait_for_dead_letters
from tests.support.own_database import own_database, replaced, superuser, with_database, with_option
from tests.support.pgbouncer import open_pgbouncer
from tests.support.webhook_backend import WebhookBackend, open_webhook_backend


@pytest.fixture
async def pooler(database_url: str) -> AsyncIterator[str]:
    """The URL through PgBouncer in transaction mode with four connections."""
    async with open_pgbouncer(database_url) as url:
        yield url


@pytest.fixture
def pooled(bus_settings: BusSettings, pooler: str, database_url: str) -> BusSettings:
    """As an operator sets it: everything through the pooler, and a direct URL for locks."""
    return with_database(bus_settings, pooler, database_url)


class Actors:
    """`atelier run webhook` in processes of their own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    @asynccontextmanager
    async def start(self, log: Path, **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
        command = [sys.executable, "-m", "ops.cli", "run", "webhook"]
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(*command, env=self.environment | more, cwd=ROOT, stdout=file, stderr=file)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def backend() -> AsyncIterator[WebhookBackend]:
    async with open_webhook_backend() as backend:
        yield backend


@pytest.fixture
def actors(amqp_url: str, pooler: str, store_folder: Path, backend: WebhookBackend) -> Actors:
    urls = {"AMQP_URL": amqp_url, "DATABASE_URL": pooler, "STORE_URL": store_folder.as_uri(), "BACKEND_API_URL": backend.url}
    return Actors(os.environ | urls | {"HEALTH_PORT": "0", "RETRY_DELAYS_SECONDS": "0.1,0.2"})


async def test_webhooks_of_two_processes_behind_pgbouncer(
    actors: Actors, database_url: str, broker_client: BrokerClient, backend: WebhookBackend, tmp_path: Path
) -> None:
    """MagicStack/asyncpg #339, #945 and dipdup-io/dipdup #921: statements prepared on one connection are run on another.

    Two processes, four connections of the pooler, 40 orders of ten generations; the first process is killed in the middle. Each command
    is answered, none becomes a dead letter, and no generation is reported as failed twice, which would refund twice.
    """
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    async with (
        actors.start(first_log, DATABASE_DIRECT_URL=database_url) as first,
        actors.start(second_log, DATABASE_DIRECT_URL=database_url) as second,
    ):

        async def ready() -> bool:
            assert first.returncode is None, first_log.read_text()
            assert second.returncode is None, second_log.read_text()
            return all("actors.ready" in log.read_text() for log in (first_log, second_log))

        await wait_until(ready, 40)
        start = int.from_bytes(os.urandom(3)) * 100
        for number in range(40):
            command = {"kind": "failed", "generation_id": start + number // 4}
            await broker_client.publish("webhook", command, reply_to=broker_client.reply_queue)
            if number == 20:
                await asyncio.wait_for(backend.request_semaphore.acquire(), 20)
                first.kill()
        replies = [await broker_client.next_reply(20) for _ in range(40)]
    assert Counter(kind for kind, _ in replies) == {"webhook.done.v1": 40}
    reported = Counter(request.body["generation_id"] for request in backend.requests)
    assert set(reported.values()) == {1}
    assert len(reported) >= 10 - ACTOR.prefetch, "a call that the killed process had begun counts as sent"


async def test_pooler_without_direct_url_ends_the_start(actors: Actors, tmp_path: Path) -> None:
    """goauthentik/authentik #23876, keycloak/keycloak #49991: in transaction mode a session lock stays on a connection that nobody owns.

    The mode is recognised by what the pooler does; the message names the setting that cures it.
    """
    log = tmp_path / "log"
    async with actors.start(log) as process:
        assert await asyncio.wait_for(process.wait(), 30) == 1
    output = log.read_text()
    assert "DATABASE_URL: 127.0.0.1:" in output
    assert "set DATABASE_DIRECT_URL to a URL of the server itself" in output
    assert "Traceback" not in output


async def test_direct_url_may_not_lead_to_a_pooler(bus_settings: BusSettings, pooler: str) -> None:
    """OCA/connector #520: a second entry of the same pooler is meant to be in session mode, and is in transaction mode."""
    with pytest.raises(PermanentError, match=r"DATABASE_DIRECT_URL: .* pooler in transaction mode"):
        async with open_database(with_database(bus_settings, pooler, pooler)):
            pass


async def test_direct_url_may_not_lead_to_another_database(pooled: BusSettings, database_url: str, start_worker: StartWorker) -> None:
    """electric-sql/electric #2682: locks on a connection of their own protect nothing when it is of another database."""
    async with own_database(database_url) as (other_url, _, _):
        settings = with_database(pooled, pooled.postgres_url or "", other_url)
        with pytest.raises(PermanentError, match="DATABASE_DIRECT_URL leads to another database"):
            async with start_worker(echo_actor(FlakyHandler()), settings=settings):
                pass


@pytest.mark.parametrize(
    ("pool_size", "turns"), [(1, "0"), (1, "1"), (4, "0"), (4, "1")], ids=["one", "one-in-turn", "four", "four-in-turn"]
)
async def test_transaction_mode_is_recognised(database_url: str, pool_size: int, turns: str) -> None:
    """keycloak/keycloak #49991: whatever the pool's size, and also with server_round_robin."""
    async with open_pgbouncer(database_url, pool_size=pool_size, server_round_robin=turns) as url:
        assert (await asyncio.wait_for(examine_server("DATABASE_URL", url), 5)).shares_sessions


async def test_session_mode_needs_no_direct_url(bus_settings: BusSettings, database_url: str, start_worker: StartWorker) -> None:
    """brianc/node-postgres #1543: a pooler in session mode has what we need."""
    async with open_pgbouncer(database_url, pool_mode="session", pool_size=20) as url:
        async with start_worker(echo_actor(FlakyHandler()), settings=with_database(bus_settings, url)):
            pass
        assert not (await examine_server("DATABASE_URL", url)).shares_sessions


async def test_statement_mode_is_refused(database_url: str) -> None:
    """pgbouncer/pgbouncer #655 and its feature table: in statement mode there are no transactions."""
    async with open_pgbouncer(database_url, pool_mode="statement") as url:
        with pytest.raises(PermanentError, match="set its pool_mode to transaction or session"):
            await examine_server("DATABASE_URL", url)


class Number(Result):
    number: int


async def test_inbox_behind_pgbouncer(pooled: BusSettings) -> None:
    """ClosureTree/with_advisory_lock #43: two processes; of the living one no message is acquired, of the dead one it is."""
    async with AsyncExitStack() as stack:
        pool, locks = await stack.enter_async_context(open_database(pooled))
        assert pool
        assert locks
        await apply_schemas(pool, [SCHEMA])
        inbox, message = PostgresInbox(pool, locks), uuid4().hex
        liveness = asyncio.create_task(inbox.hold_liveness_lock())
        stack.callback(liveness.cancel)
        await inbox.liveness_lock_held.wait()
        await inbox.acquire("echo", message, "job")
        async with open_database(pooled) as (other_pool, other_locks), open_inbox(other_pool, other_locks) as other:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(other.acquire("echo", message, "job"), 0.3)
            liveness.cancel()
            await locks.close()
            entry = await asyncio.wait_for(other.acquire("echo", message, "job"), 5)
            assert (entry.result, entry.crash_count) == (None, 1)
            await other.mark_done("echo", message, Number(number=1), None)
            assert (await other.acquire("echo", message, "job")).result == {"number": 1}


async def test_four_workers_behind_two_connections(
    bus_settings: BusSettings, database_url: str, broker_client: BrokerClient, store_folder: Path
) -> None:
    """supabase/supavisor #239, prisma/orm #2520: each worker may have eight connections, the pooler two, and nobody waits for ever.

    The workers start at the same time, so that they apply the schemas at the same time.
    """
    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    async with open_pgbouncer(database_url, pool_size=2) as url, AsyncExitStack() as stack:
        settings, store = with_database(bus_settings, url, database_url), StoreSettings(store_url=store_folder.as_uri())
        workers = [Worker([actor], (), settings, store).run() for _ in range(4)]
        await asyncio.wait_for(asyncio.gather(*(stack.enter_async_context(worker) for worker in workers)), 30)
        for number in range(60):
            await broker_client.publish(actor.step, {"text": str(number)}, reply_to=broker_client.reply_queue)
        replies = [await broker_client.next_reply() for _ in range(60)]
    assert sorted(int(body["text"]) for _, body in replies) == list(range(60))


async def test_dead_letters_and_ledger_behind_pgbouncer(pooled: BusSettings, broker_client: BrokerClient, store_folder: Path) -> None:
    """sqlalchemy/sqlalchemy #6467: batches (`executemany`), transactions and types of their own, each on another session."""

    actor = echo_actor(FlakyHandler())
    ingest = DeadLetterIngest("ingest", (broker_names.dead_letter_queue(actor.step),))
    store = StoreSettings(store_url=store_folder.as_uri())
    worker = Worker([COMPLETION_LISTENER, *ledger.ACTORS, actor], (), pooled, store, (ingest,))
    async with worker.run(), open_pool(pooled) as pool:
        assert pool
        jobs = [f"job-{uuid4().hex[:8]}" for _ in range(12)]
        for job in jobs:
            await broker_client.publish(actor.step, {"text": "x"}, correlation_id=job)
        repository = DeadLetterRepository(pool)

        async def stored() -> bool:
            return len(await wait_for_dead_letters(repository, step=actor.step)) == 12

        await wait_until(stored, 20)

        async def recorded() -> bool:
            rows = await pool.fetch("select job_id from atelier.jobs where job_id = any($1::text[]) and state = 'failed'", jobs)
            return len(rows) == 12

        await wait_until(recorded, 20)


async def test_turns_of_a_conversation_behind_pgbouncer(pooled: BusSettings) -> None:
    """bensheldon/good_job #1573: a lock that is taken on one session and released on another. Two processes, one turn at a time."""
    question = ConversationMessage.model_validate({"role": "user", "content": "안녕?", "timestamp": "2026-01-01T00:00:00Z"})
    conversation = uuid4().hex
    async with open_database(pooled) as first, open_database(pooled) as second:
        assert first[0]
        await apply_schemas(first[0], [CONVERSATIONS_SCHEMA])

        async def turn(process: Any) -> None:
            repository = ConversationRepository(*process)
            async with repository.lock_conversation(conversation):
                history = await repository.load_history(conversation, "t")
                await asyncio.sleep(0.01)
                async with repository.pool.acquire() as connection, connection.transaction():
                    await append_turn(connection, history, question, "!")

        await asyncio.wait_for(asyncio.gather(*(turn((first, second)[number % 2]) for number in range(20))), 20)
        assert len((await ConversationRepository(*first).load_history(conversation, "t")).messages) == 40


async def test_pooler_that_closes_idle_clients(
    bus_settings: BusSettings, database_url: str, broker_client: BrokerClient, start_worker: StartWorker
) -> None:
    """adcontextprotocol/adcp #2070, pgbouncer/pgbouncer #587: with `client_idle_timeout` the next statement finds a closed connection."""
    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(open_pgbouncer(database_url, client_idle_timeout="1"))
        await stack.enter_async_context(start_worker(actor, settings=with_database(bus_settings, url, database_url)))
        for _ in range(2):
            await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
            assert (await broker_client.next_reply())[1]["text"] == "x"
            await asyncio.sleep(1.6)


async def test_pooler_that_ends_waiting_clients(
    bus_settings: BusSettings, database_url: str, broker_client: BrokerClient, start_worker: StartWorker
) -> None:
    """MagicStack/asyncpg #1299: with `query_wait_timeout` a statement ends with a closed connection. The command waits, and is answered."""
    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(open_pgbouncer(database_url, pool_size=1, query_wait_timeout="1"))
        await stack.enter_async_context(start_worker(actor, settings=with_database(bus_settings, url, database_url)))
        async with superuser(url) as other, other.transaction():
            await other.execute("select 1")
            await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
            await asyncio.sleep(1.5)
            assert broker_client.replies.empty()
        assert (await broker_client.next_reply())[1]["text"] == "x"


async def test_notifications_with_a_pooler(
    pooled: BusSettings, database_url: str, broker_client: BrokerClient, start_worker: StartWorker
) -> None:
    """QueueClassic/queue_classic #184, freifunkMUC/wg-access-server #152: LISTEN through the pooler hears nothing, without an error."""
    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    listener = PgListener(
        name="report",
        channel=f"report_{uuid4().hex[:8]}",
        id_field="id",
        due_query="select unnest($1::text[]) as id",
        translate=lambda row: TranslatedCommand(actor.step, {"text": row["id"]}, uuid4().hex, "job"),
    )
    notify = "select pg_notify($1, $2)"
    async with start_worker(actor, settings=pooled, adapters=[listener]), superuser(database_url) as server:

        async def heard() -> bool:
            await server.execute(notify, listener.channel, json.dumps({"id": "row-1"}))
            return any(text == "row-1" for _, text in handler.completed)

        await wait_until(heard, 10)
    assert {text for _, text in handler.completed} == {"row-1"}


async def test_operator_reads_dead_letters_through_the_pooler(actors: Actors) -> None:
    """prisma/orm #23438: tools beside the workers get the same URL. They hold no lock, and need no direct one."""
    command = [sys.executable, "-m", "ops.cli", "dead-letters", "list", "--json"]
    process = await asyncio.create_subprocess_exec(*command, env=actors.environment, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert "letters" in json.loads(output)


async def test_doctor_reports_the_missing_direct_url(
    pooler: str, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """skypilot-org/skypilot #10347: nobody sees that a lock cannot ride the pooler. The doctor examines as a worker does."""
    settings = LocalSettings(database_url=SecretStr(pooler))
    assert "set DATABASE_DIRECT_URL" in (await check_database(settings)).detail
    monkeypatch.setenv("DATABASE_DIRECT_URL", database_url)
    assert (await check_database(settings)).ok
    monkeypatch.setenv("DATABASE_DIRECT_URL", database_url.replace("/postgres", "/template1"))
    assert "leads to another database than DATABASE_URL" in (await check_database(settings)).detail
    monkeypatch.delenv("DATABASE_DIRECT_URL")
    wrong = await check_database(LocalSettings(database_url=SecretStr("postgresql://one:secret@a,b:5432/d?schema=public")))
    assert not wrong.ok
    assert "DATABASE_URL: the option `schema`" in wrong.detail
    assert "secret" not in wrong.detail


async def test_tls_of_a_pooler(database_url: str, tmp_path: Path) -> None:
    """estuary/connectors #796: a server that asks for TLS, and a certificate of an authority that is not known."""
    certificates = make_certificates(tmp_path)
    async with open_pgbouncer(database_url, certificates=certificates) as url:
        for option in ("sslmode=require", f"sslmode=verify-full&sslrootcert={certificates.authority}"):
            assert (await examine_server("DATABASE_URL", f"{url}?{option}")).shares_sessions
        with pytest.raises(PermanentError, match=r"certificate is not accepted .* set TLS_CA_FILE"):
            await examine_server("DATABASE_URL", f"{url}?sslmode=verify-full&sslrootcert=system")
        with pytest.raises(PermanentError, match="the pooler requires TLS: add sslmode=require"):
            await examine_server("DATABASE_URL", f"{url}?sslmode=disable")


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        pytest.param(lambda url: url.replace(urlsplit(url).password or "", "wrong"), "correct user and password", id="a wrong password"),
        pytest.param(replaced("/postgres", "/nope"), "no such database", id="an unknown database"),
        pytest.param(with_option("jit=off"), "remove the option", id="PrefectHQ/prefect #14602"),
        pytest.param(with_option("search_path=x"), "remove the option", id="goauthentik/authentik #19939"),
        pytest.param(with_option("options=-c%20search_path%3Dx"), "remove the option", id="metabase/metabase #48068"),
        pytest.param(with_option("default_transaction_isolation=serializable"), "remove the option", id="pgbouncer/pgbouncer #1074"),
    ],
)
async def test_refusal_of_a_pooler_is_no_absence(pooler: str, change: Callable[[str], str], cure: str) -> None:
    """PgBouncer refuses with the SQLSTATE of a lost connection, which looks like a server that is away."""
    with pytest.raises(PermanentError, match=r"^DATABASE_URL: ") as error:
        await examine_server("DATABASE_URL", change(pooler))
    assert cure in str(error.value)


@pytest.mark.parametrize("option", ["search_path=x", "options=-c%20search_path%3Dx", "Search_Path=x", "options=--search-path%3Dx"])
async def test_option_that_a_pooler_ignores_is_reported(database_url: str, option: str) -> None:
    """pgbouncer/pgbouncer #493: with `ignore_startup_parameters` the option is accepted and means nothing."""
    async with open_pgbouncer(database_url, ignore_startup_parameters="search_path,Search_Path,options") as url:
        with pytest.raises(PermanentError, match="a pooler ignores the option search_path"):
            await examine_server("DATABASE_URL", f"{url}?{option}")
    assert not (await examine_server("DATABASE_URL", f"{database_url}?{option}")).shares_sessions
