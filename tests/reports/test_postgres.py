"""PostgreSQL as people run it: the URLs of other programs, servers that refuse, roles, encodings and defaults of their own.

The reports are public ones, in our words; the server is real. Those of poolers are in `test_poolers.py`.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from pydantic import SecretStr

from actors import ledger
from actors.conversations import list_conversations
from actors.llm.conversation_repository import SCHEMA as CONVERSATIONS_SCHEMA
from actors.llm.conversation_repository import ConversationRepository, append_turn
from actors.webhook import ACTOR
from actors.webhooks.delivery_lock import SQL as DELIVERY_SQL
from actors.webhooks.delivery_lock import PostgresDeliveryLock
from bus.dead_letters.ingest import DeadLetterIngest
from bus.errors import PermanentError
from bus.persistence import session_locks
from bus.persistence.database_url import check_certificate_files, check_database_url, session_parameters, without_connect_timeout
from bus.persistence.inbox import SCHEMA, open_inbox
from bus.persistence.pool import apply_schemas, open_pool
from bus.persistence.server_check import DatabaseAway, examine_server
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.resources import open_database
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.conversation import ConversationMessage, ListConversations
from contracts.wire import Result
from ops.cli import main
from ops.docgen.settings_catalog import ROOT
from ops.errors import SetupError
from ops.local.postgres import EmbeddedPostgres
from ops.local.stack import local_stack
from ops.settings import LocalSettings
from tests.support.actor_context import make_context
from tests.support.broker_client import BrokerClient, StartWorker, echo_actor
from tests.support.certificates import make_certificates
from tests.support.dead_letter_fixtures import FlakyHandler, queue_size
from tests.support.own_database import own_database, replaced, superuser, with_database, with_option
from tests.support.webhook_backend import open_webhook_backend


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
        pytest.param(with_option("options=endpoint%3Dep-x"), "refuses an option after `?`", id="neondatabase/neon #6291, no such proxy"),
        pytest.param(with_option("options=search_path%3Dx"), "refuses an option after `?`", id="an option without -c"),
        pytest.param(with_option("options=-Z"), "refuses an option after `?`", id="an unknown flag"),
        pytest.param(with_option("sslmode=verify-full&sslrootcert=/dev/null"), "/dev/null, is missing", id="no regular file"),
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
    "option",
    [
        *("TimeZone=UTC", "timezone=UTC", "DateStyle=ISO", "IntervalStyle=postgres", "Application_Name=x", "Search_Path=public"),
        *("options=-c%20timezone%3DUTC", "options=-c%20TimeZone%3DUTC%20--statement-timeout%3D5000", "app.tenant=3"),
    ],
)
async def test_option_that_the_server_applies_is_accepted(database_url: str, option: str) -> None:
    """psycopg and JDBC write names of parameters with capital letters, as the documents of PostgreSQL do; case means nothing to it."""
    async with own_database(database_url) as (url, *_):
        assert not (await examine_server("DATABASE_URL", f"{url}?{option}")).shares_sessions


@pytest.mark.parametrize("option", ["role={}", "options=-c%20role%3D{}"])
async def test_role_of_the_session_is_accepted(database_url: str, option: str) -> None:
    """hashicorp/terraform-provider-postgresql: a login of its own that acts as the owner. No view of the server lists this parameter."""
    async with own_database(database_url) as (url, role, _):
        assert not (await examine_server("DATABASE_URL", f"{url}?{option.format(role)}")).shares_sessions


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        ("sslrootcert={empty}", "the file of sslrootcert, .*it must hold certificates in PEM"),
        ("sslrootcert={text}", "the file of sslrootcert, .*it must hold certificates in PEM"),
        ("sslcrl={text}", "the file of sslcrl, .*it must hold certificates in PEM"),
        ("sslcert={text}&sslkey={key}", "the file of sslcert, .*it must hold certificates in PEM"),
        ("sslcert={server}&sslkey={text}", "the file of sslkey, .*it must hold a key in PEM"),
        ("sslcert={authority}&sslkey={key}", "the file of sslkey, .*belongs to sslcert"),
    ],
)
async def test_certificate_file_that_cannot_be_used_is_named(database_url: str, tmp_path: Path, option: str, cure: str) -> None:
    """A mounted secret that is empty, or DER in place of PEM: the driver's error is that of a broken connection, and was waited for."""
    made = make_certificates(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no certificate")
    names = {"empty": tmp_path / "empty", "text": tmp_path / "text", "key": made.key, "server": made.server, "authority": made.authority}
    with pytest.raises(PermanentError, match=f"^DATABASE_URL: {cure}"):
        await examine_server("DATABASE_URL", f"{database_url}?sslmode=verify-full&{option.format(**names)}")
    check_certificate_files(f"{database_url}?sslrootcert={made.authority}&sslcert={made.server}&sslkey={made.key}")


def test_certificate_file_without_the_right_to_read_is_named(tmp_path: Path) -> None:
    """bitnami/charts: a key with mode 0600 that belongs to another user than that of the container."""
    key = make_certificates(tmp_path).key
    key.chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        with pytest.raises(ValueError, match=r"the file of sslrootcert, .* may not be read"):
            check_certificate_files(f"postgresql://h/d?sslrootcert={key}")
    finally:
        os.seteuid(user)


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


async def test_start_that_waits_ends_with_sigterm(tmp_path: Path) -> None:
    """janbjorge/pgqueuer #224: a process that waits for its database hears no signal, and is killed after the grace period."""
    urls = {"AMQP_URL": "amqp://127.0.0.1:1", "DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d", "STORE_URL": tmp_path.as_uri()}
    command = [sys.executable, "-m", "ops.cli", "run", "webhook"]
    environment = os.environ | urls | {"HEALTH_PORT": "0"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=ROOT, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    assert process.stdout
    async with asyncio.timeout(40):
        async for line in process.stdout:
            if b"dependency.unavailable" in line:
                break
    process.terminate()
    rest, _ = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    assert b"Traceback" not in rest


async def test_local_stack_reports_a_wrong_url(tmp_path: Path) -> None:
    """PrefectHQ/prefect #14602: the command that starts all processes names the setting, before any of them restarts in a circle."""
    settings = LocalSettings(local_folder=tmp_path, database_url=SecretStr("postgresql+asyncpg://u:p@h/d"))
    with pytest.raises(SetupError, match=r"DATABASE_URL: .*SQLAlchemy"):
        async with local_stack(settings):
            pass


async def test_local_stack_reports_a_wrong_direct_url(tmp_path: Path) -> None:
    """PrefectHQ/prefect #14602, the other setting."""
    wrong = SecretStr("jdbc:postgresql://h/d")
    settings = LocalSettings(local_folder=tmp_path, database_url=SecretStr("postgresql://h/d"), database_direct_url=wrong)
    with pytest.raises(SetupError, match=r"DATABASE_DIRECT_URL: .*form of Java"):
        async with local_stack(settings):
            pass


@pytest.mark.parametrize("given", [True, False], ids=["given", "embedded"])
def test_local_processes_inherit_no_direct_url_of_another_database(
    monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres, tmp_path: Path, given: bool
) -> None:
    """A direct URL in the environment ended every process of an embedded server with `database-other`."""
    monkeypatch.setattr("ops.local.stack.shared_servers", lambda *_: nullcontext())
    monkeypatch.setattr("ops.local.stack.EmbeddedPostgres", lambda _: postgres)
    direct, database = SecretStr("postgresql://direct/d"), SecretStr("postgresql://pooled/d")
    settings = LocalSettings(
        local_folder=tmp_path, amqp_url=SecretStr("amqp://h"), database_url=database if given else None, database_direct_url=direct
    )

    async def environment() -> dict[str, str]:
        async with local_stack(settings) as stack:
            return stack.environment

    assert asyncio.run(environment())["DATABASE_DIRECT_URL"] == ("postgresql://direct/d" if given else "")


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


async def test_password_that_is_being_changed_makes_no_dead_letters(
    bus_settings: BusSettings, database_url: str, broker_client: BrokerClient, start_worker: StartWorker
) -> None:
    """fly-apps/postgres-flex #256: a wrong password ends a start; while a process runs, it waits until the password fits again."""
    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    async with own_database(database_url) as (url, role, server), start_worker(actor, settings=with_database(bus_settings, url)):
        await server.execute(f"alter role {role} password 'another'")
        await server.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'")
        await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        await asyncio.sleep(0.7)
        assert broker_client.replies.empty()
        await server.execute(f"alter role {role} password 'secret'")
        assert (await broker_client.next_reply())[1]["text"] == "x"


async def test_second_host_and_escaped_user(database_url: str) -> None:
    """brianc/node-postgres #3013, patroni users: the first of several hosts is down, and the user's name has an `@`."""
    async with own_database(database_url) as (url, role, server):
        await server.execute(f"create role \"{role}@shop\" login password 'p#1/%'")
        several = url.replace("127.0.0.1", "127.0.0.1:1,127.0.0.1").replace(f"{role}:secret", f"{role}%40shop:p%231%2F%25")
        assert not (await examine_server("DATABASE_URL", check_database_url(several))).shares_sessions
        await server.execute(f'drop role "{role}@shop"')


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
        pass
    await locks.close()
    await others.close()


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
