"""PostgreSQL as people run it: behind PgBouncer, with the URLs of other programs, with roles, encodings and defaults of their own.

The reports are public ones, told in our words. The server is real, and so is PgBouncer.
"""

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from actors import ledger
from actors.conversations import list_conversations
from actors.llm.conversation_repository import SCHEMA as CONVERSATIONS_SCHEMA
from actors.llm.conversation_repository import ConversationRepository, append_turn
from bus.actor import TranslatedCommand
from bus.dead_letters.ingest import DeadLetterIngest
from bus.dead_letters.repository import DeadLetterRepository
from bus.errors import PermanentError
from bus.persistence.database_url import check_database_url, session_parameters, without_connect_timeout
from bus.persistence.inbox import SCHEMA, PostgresInbox
from bus.persistence.pool import apply_schemas, open_pool
from bus.persistence.server_check import DatabaseAway, examine_server
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.pg_listener import PgListener
from bus.worker.resources import open_database
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.conversation import ConversationMessage, ListConversations
from contracts.wire import Result
from ops.cli import main
from ops.commands.doctor_services import check_database
from ops.docgen.settings_catalog import ROOT
from ops.local.postgres import EmbeddedPostgres
from ops.settings import LocalSettings
from tests.support.actor_context import make_context
from tests.support.broker_client import BrokerClient, StartWorker, echo_actor, wait_until
from tests.support.certificates import make_certificates
from tests.support.dead_letter_fixtures import COMPLETION_LISTENER, FlakyHandler, wait_for_dead_letters
from tests.support.pgbouncer import open_pgbouncer
from tests.support.webhook_backend import WebhookBackend, open_webhook_backend

HELD_LOCKS = "select count(*) from pg_locks where locktype = 'advisory' and granted"


@pytest.fixture
async def pooler(database_url: str) -> AsyncIterator[str]:
    """The URL through PgBouncer in transaction mode with four connections."""
    async with open_pgbouncer(database_url) as url:
        yield url


@pytest.fixture
def pooled(bus_settings: BusSettings, pooler: str, database_url: str) -> BusSettings:
    """As an operator sets it: everything through the pooler, and a direct URL for locks."""
    return with_database(bus_settings, pooler, database_url)


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


# Behind PgBouncer


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
    assert len(reported) == 10
    assert set(reported.values()) == {1}


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
        async with open_database(pooled) as (other_pool, other_locks):
            assert other_pool
            assert other_locks
            other = PostgresInbox(other_pool, other_locks)
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
        pass
    await locks.close()
    await others.close()


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


# URLs


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        pytest.param("postgresql+asyncpg://u:geheim@h/d", "names a driver for SQLAlchemy", id="PrefectHQ/prefect #14602"),
        pytest.param("postgres+psycopg2://u:geheim@h/d", "names a driver for SQLAlchemy", id="morphik-org/morphik-core #122"),
        pytest.param("jdbc:postgresql://h:5432/d?user=u&password=geheim", "form of Java", id="pgbouncer/pgbouncer #89"),
        pytest.param("mysql://u:geheim@h/d", "its scheme is `mysql`", id="another database"),
        pytest.param("sqlite:///geheim.db", "its scheme is `sqlite`", id="a file"),
        pytest.param("host=h user=u password=geheim", "words such as host=", id="spacecloud-io/space-cloud #537"),
        pytest.param('"postgresql://u:geheim@h/d"', "quotation mark", id="quotation marks from --env-file"),
        pytest.param("postgresql://u:ge#heim@h/d", "`#` as %23", id="supabase/cli #155"),
        pytest.param("postgresql://u:ge@heim@h/d", "`@` as %40", id="ankane/pgsync #236"),
        pytest.param("postgresql://u:ge/heim@h:5432/d", "`/` as %2F", id="PostgREST/postgrest #1531"),
        pytest.param("postgresql://u:12/geheim@h:5432/d", "`/` as %2F", id="brianc/node-postgres #3013"),
        pytest.param("postgresql://u:ge?heim@h:5432/d", "`?` as %3F", id="ariga/atlas #1631"),
        pytest.param("postgresql://u:geheim]S[P@h:5432/d", "`[` as %5B", id="amacneil/dbmate #212"),
        pytest.param("postgresql://u:100%geheim@h/d", "`%` as %25", id="grafana/xk6-sql #21"),
        pytest.param("postgresql://u:geheim@h:5432a/d", "port of a host is no number", id="a port with a letter"),
        pytest.param("postgresql://u:geheim@h/d?schema=public", "`schema` belongs to another driver: remove it", id="prisma/orm #23438"),
        pytest.param("postgresql://u:geheim@h/d?pgbouncer=true", "recognised without it", id="prisma/orm #2520"),
        pytest.param("postgresql://u:geheim@h/d?connection_limit=5", "DATABASE_POOL_SIZE", id="SatyamPandey-07/WorkSphere #893"),
        pytest.param("postgresql://u:geheim@h/d?sslmode=require&channel_binding=require", "no channel binding", id="t8y2/dbx #1210"),
        pytest.param("postgresql://u:geheim@h/d?ssl=true", "write sslmode=require", id="ssl of JDBC"),
        pytest.param("postgresql://u:geheim@h/d?sslmode=required", "sslmode is one of", id="a mode of MySQL"),
        pytest.param("postgresql://u:geheim@h/d?sslmode", "name=value", id="an option without a value"),
        pytest.param("postgresql://u:geheim@h/d?connect_timeout=10s", "a number of seconds", id="a time with a unit"),
    ],
)
def test_wrong_url_is_reported_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, cure: str
) -> None:
    """At once, by both settings, without a broker or a database; no part of the URL is quoted."""
    with pytest.raises(ValueError, match=re.escape(cure)):
        check_database_url(url)
    for name in ("DATABASE_URL", "DATABASE_DIRECT_URL"):
        with monkeypatch.context() as environment:
            environment.setenv("AMQP_URL", "amqp://none")
            environment.setenv(name, url)
            environment.setattr("bus.observability.logs.configure_logging", lambda: None)
            assert main(["run", "webhook"]) == 1
        output = capsys.readouterr().err
        assert f"{name}: " in output
        assert "heim" not in output
        assert "Traceback" not in output


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u@h",
        "postgresql://user%40tenant:p%23%2F@h:5432/d",
        "postgresql://u:p@[::1]:5432/d?application_name=a%40b",
        "postgresql://u:p@one:5432,two:5433,three/d?target_session_attrs=read-write",
        "postgresql:///d?host=/run/postgresql&user=u",
        "postgresql://u:p@h/d?options=-c%20search_path%3Dx%20--work_mem%3D8MB&statement_timeout=5s",
        "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=system&connect_timeout=10",
        " postgresql://u:p@h/d\n",
    ],
)
def test_sound_url_is_accepted(url: str) -> None:
    """dbmate and libpq: escaped users, IPv6, several hosts, sockets, options of the session, a line feed at the end of a secret's file."""
    assert check_database_url(url) == url.strip()


def test_options_are_read_as_libpq_does() -> None:
    """checkly and neondatabase/neon #6291: parameters inside of `options`; `connect_timeout` and `sslrootcert=system` are libpq's own."""
    url = "postgresql://h/d?options=-c%20search_path%3Dx%20--work_mem%3D8MB&statement_timeout=5s&connect_timeout=7&sslrootcert=system"
    assert session_parameters(url) == ["statement_timeout", "search_path", "work_mem"]
    dsn, seconds = without_connect_timeout(url, 10.0)
    assert (seconds, "connect_timeout" in dsn, "sslrootcert=system" in dsn) == (7.0, False, False)
    assert without_connect_timeout("postgresql://h/d?connect_timeout=0", 10.0) == ("postgresql://h/d", 10.0)


# Servers that refuse


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda url: url.replace(old, new)


def with_option(option: str) -> Callable[[str], str]:
    return lambda url: f"{url}?{option}"


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        pytest.param(lambda url: url.replace(urlsplit(url).password or "", "wrong"), "correct user and password", id="epgsql/pgapp #18"),
        pytest.param(lambda url: url.replace(f":{urlsplit(url).password}", ""), "password", id="PostgREST/postgrest #2801"),
        pytest.param(replaced("atelier:", "nobody:"), "correct user and password", id="an unknown user"),
        pytest.param(replaced("/postgres", "/nope"), 'database "nope" does not exist', id="an unknown database"),
        pytest.param(with_option("sslmode=require"), "the server has no TLS", id="estuary/connectors #796"),
        pytest.param(with_option("sslmode=verify-full"), "set TLS_CA_FILE", id="verify-full without an authority"),
        pytest.param(with_option("sslmode=verify-full&sslrootcert=/nope.pem"), "/nope.pem, is missing", id="a file that is not mounted"),
        pytest.param(with_option("foo=bar"), 'unrecognized configuration parameter "foo"', id="an unknown option"),
        pytest.param(with_option("statement_timeout=soon"), "invalid value for parameter", id="a wrong value"),
        pytest.param(with_option("default_transaction_read_only=on"), "the server is read-only", id="bitnami/charts #23219"),
    ],
)
async def test_refusal_is_no_absence(
    database_url: str, change: Callable[[str], str], cure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Waiting cannot cure it: the start ends with the setting's name and the cure, without the password."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PermanentError, match=r"^DATABASE_URL: ") as error:
        await examine_server("DATABASE_URL", change(database_url))
    assert cure in str(error.value)
    assert (urlsplit(database_url).password or "") not in str(error.value)


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


@pytest.mark.parametrize("option", ["search_path=x", "options=-c%20search_path%3Dx"])
async def test_option_that_a_pooler_ignores_is_reported(database_url: str, option: str) -> None:
    """pgbouncer/pgbouncer #493: with `ignore_startup_parameters` the option is accepted and means nothing."""
    async with open_pgbouncer(database_url, ignore_startup_parameters="search_path,options") as url:
        with pytest.raises(PermanentError, match="a pooler ignores the option search_path"):
            await examine_server("DATABASE_URL", f"{url}?{option}")
    assert not (await examine_server("DATABASE_URL", f"{database_url}?{option}")).shares_sessions


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(replaced("127.0.0.1", "db.nope.invalid"), "db.nope.invalid:.*cannot be resolved", id="an unknown host"),
        pytest.param(lambda url: url.replace(str(urlsplit(url).port), "1"), "127.0.0.1:1: .*Connect call failed", id="a closed port"),
        pytest.param(with_option("target_session_attrs=standby"), "target_session_attrs", id="no such host among several"),
    ],
)
async def test_absence_names_the_host(database_url: str, change: Callable[[str], str], reason: str) -> None:
    """maplibre/martin #3231: the name of a service may resolve a moment later, so it is waited for, and the log says for what."""
    with pytest.raises(DatabaseAway, match=f"DATABASE_URL: .*{reason}"):
        await examine_server("DATABASE_URL", change(database_url))


async def test_full_or_starting_server_is_waited_for(database_url: str) -> None:
    """dani-garcia/vaultwarden #1168 and diesel-rs/diesel #2340: 57P03 and 53300 end by themselves."""
    async with own_database(database_url) as (url, role, server):
        await server.execute(f"alter role {role} connection limit 0")
        with pytest.raises(DatabaseAway, match="too many connections"):
            await examine_server("DATABASE_URL", url)
        await server.execute(f"alter role {role} connection limit -1")
        await server.execute(f"alter database {role} allow_connections false")
        with pytest.raises(DatabaseAway, match="not currently accepting connections"):
            await examine_server("DATABASE_URL", url)


async def test_database_without_every_character_is_refused(database_url: str) -> None:
    """OpenSIPS/opensips-cp #93, hasura/graphql-engine #7315: text in other languages cannot be stored in LATIN1."""
    async with own_database(database_url, options="encoding 'LATIN1' locale 'C' template template0") as (url, _, _):
        with pytest.raises(PermanentError, match=r"encoding LATIN1, which cannot hold every text.*encoding 'UTF8'"):
            await examine_server("DATABASE_URL", url)


async def test_database_without_an_encoding_works(bus_settings: BusSettings, database_url: str) -> None:
    """IQSS/dataverse #8278, pgadmin-org/pgadmin4 #1794: SQL_ASCII, as a Debian server without a locale has it, counts bytes."""
    answer = "여러 바이트로 된 글자 " * 20
    question = ConversationMessage.model_validate({"role": "user", "content": answer, "timestamp": "2026-01-01T00:00:00Z"})
    options = "encoding 'SQL_ASCII' locale 'C' template template0"
    async with own_database(database_url, options=options) as (url, *_):
        async with open_database(with_database(bus_settings, url)) as (pool, locks):
            assert pool
            assert locks
            repository = ConversationRepository(pool, locks)
            await apply_schemas(pool, [CONVERSATIONS_SCHEMA])
            async with pool.acquire() as connection, connection.transaction():
                await append_turn(connection, await repository.load_history("c-1", "shop"), question, answer)
            page = await list_conversations(ListConversations(), make_context(tenant="shop"), repository=repository)
        assert [line.last_message_preview for line in page.conversations] == [f"{answer[:50]}..."]


async def test_role_without_rights_is_reported(bus_settings: BusSettings, database_url: str) -> None:
    """golang-migrate/migrate #826, ANXS/postgresql #571: since PostgreSQL 15 a role may not create tables in `public`."""
    async with own_database(database_url) as (url, role, server):
        await server.execute(f"alter database {role} owner to current_user")
        async with open_pool(with_database(bus_settings, url)) as pool:
            assert pool
            with pytest.raises(PermanentError, match=r"DATABASE_URL: our tables cannot be created, .*permission denied.*grant"):
                await apply_schemas(pool, [SCHEMA])


async def test_schema_that_an_administrator_made_is_enough(bus_settings: BusSettings, database_url: str) -> None:
    """IQSS/dataverse #9717: the administrator creates the schema for a role that may create none."""
    async with own_database(database_url) as (url, role, server):
        await server.execute(f"alter database {role} owner to current_user")
        async with superuser(url.replace(f"{role}:secret", urlsplit(database_url).netloc.partition("@")[0])) as administrator:
            await administrator.execute(f"create schema atelier authorization {role}")
        async with open_pool(with_database(bus_settings, url)) as pool:
            assert pool
            await apply_schemas(pool, [SCHEMA])
            assert await pool.fetchval("select to_regclass('atelier.inbox') is not null")


# Defaults of other people


@pytest.mark.parametrize(
    "default",
    [
        pytest.param("default_transaction_isolation = 'serializable'", id="oban-bg/oban #1132"),
        pytest.param("default_transaction_isolation = 'repeatable read'", id="quartz-scheduler/quartz #1069"),
        pytest.param(
            "datestyle = 'German'; timezone = 'Asia/Seoul'; search_path = 'nowhere'; standard_conforming_strings = off; jit = off",
            id="pgbouncer/pgbouncer #482",
        ),
        pytest.param(
            "statement_timeout = '2s'; lock_timeout = '1s'; idle_in_transaction_session_timeout = '1s'; synchronous_commit = off",
            id="the limits of a managed role",
        ),
    ],
)
async def test_defaults_of_the_role_change_nothing(
    bus_settings: BusSettings, database_url: str, default: str, broker_client: BrokerClient, store_folder: Path
) -> None:
    """Inbox, ledger and dead letters work the same, with eight commands at once in each of two workers."""

    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    ingest = DeadLetterIngest("ingest", (broker_names.dead_letter_queue(actor.step),))
    async with own_database(database_url) as (url, role, server):
        for setting in default.split("; "):
            await server.execute(f"alter role {role} set {setting}")
        settings, store = with_database(bus_settings, url), StoreSettings(store_url=store_folder.as_uri())
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(Worker([*ledger.ACTORS, actor], (), settings, store, (ingest,)).run())
            for number in range(16):
                await broker_client.publish(
                    actor.step, {"text": str(number)}, correlation_id=f"{role}-{number % 4}", reply_to=broker_client.reply_queue
                )
            replies = [await broker_client.next_reply() for _ in range(16)]
        assert sorted(int(body["text"]) for _, body in replies) == list(range(16)), json.dumps(replies[:2])


async def test_concurrent_statements_of_serializable_sessions_are_repeated(bus_settings: BusSettings, database_url: str) -> None:
    """oban-bg/oban #1132: SQLSTATE 40001. A single statement is repeated, and a transaction of ours is read committed."""
    async with own_database(database_url) as (url, role, server):
        await server.execute(f"alter role {role} set default_transaction_isolation = 'serializable'")
        async with open_pool(with_database(bus_settings, url)) as pool:
            assert pool
            await pool.execute("create table counter as select 0 as number")
            await asyncio.gather(*(pool.execute("update counter set number = number + 1") for _ in range(5)))
            assert await pool.fetchval("select number from counter") == 5
            async with pool.acquire() as connection, connection.transaction():
                assert await connection.fetchval("show transaction_isolation") == "read committed"


async def test_pool_leaves_a_server_that_became_a_replica(bus_settings: BusSettings, database_url: str) -> None:
    """lidofinance/lido-keys-api #268, npgsql/efcore.pg #1306: after a failover the pool's connections still lead to the old primary."""
    async with own_database(database_url) as (url, role, server), open_pool(with_database(bus_settings, url)) as pool:
        assert pool
        await pool.execute("create table things (number integer)")
        session = await pool.fetchval("select pg_backend_pid()")
        await server.execute(f"alter role {role} set default_transaction_read_only = on")
        async with pool.acquire() as connection:
            connection.mark_clean()
            await connection.execute("set session characteristics as transaction read only")
        await server.execute(f"alter role {role} reset default_transaction_read_only")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await pool.execute("insert into things values (1)")
        await pool.execute("insert into things values (2)")
        assert await pool.fetchval("select pg_backend_pid()") != session


async def test_restart_of_the_server_is_waited_for(
    bus_settings: BusSettings, postgres: EmbeddedPostgres, broker_client: BrokerClient, start_worker: StartWorker
) -> None:
    """danny-avila/rag_api #285: every connection ends at once, as in a failover; commands meanwhile are handled afterwards."""
    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    async with start_worker(actor):
        await asyncio.to_thread(postgres.restart)
        for number in range(8):
            await broker_client.publish(actor.step, {"text": str(number)}, reply_to=broker_client.reply_queue)
        replies = [await broker_client.next_reply(20) for _ in range(8)]
    assert sorted(int(body["text"]) for _, body in replies) == list(range(8))
