"""PostgreSQL as people run it: servers that refuse, roles, encodings and defaults of their own.

The reports are public ones, in our words; the server is real. Those of poolers, URLs and locks have files of their own.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from actors import ledger
from actors.conversations import list_conversations
from actors.llm.conversation_repository import SCHEMA as CONVERSATIONS_SCHEMA
from actors.llm.conversation_repository import ConversationRepository, append_turn
from bus.dead_letters.ingest import DeadLetterIngest
from bus.errors import PermanentError
from bus.persistence.database_url import check_database_url
from bus.persistence.inbox import SCHEMA
from bus.persistence.pool import apply_schemas, open_pool
from bus.persistence.server_check import DatabaseAway, examine_server
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.resources import open_database
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.conversation import ConversationMessage, ListConversations
from ops.docgen.settings_catalog import ROOT
from ops.local.postgres import EmbeddedPostgres
from tests.support.actor_context import make_context
from tests.support.broker_client import BrokerClient, StartWorker, echo_actor
from tests.support.dead_letter_fixtures import FlakyHandler
from tests.support.own_database import own_database, replaced, superuser, with_database, with_option


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
