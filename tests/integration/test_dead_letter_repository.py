"""Stored dead letters: rate limit, groups, ages, and the queries and commands over the bus and over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from actors.dead_letters import ACTORS
from bus.actor import Adapter, TranslatedCommand
from bus.dead_letters import replay
from bus.dead_letters.ingest import DeadLetterIngest
from bus.dead_letters.repository import SCHEMA, DeadLetterRepository
from bus.errors import PermanentError
from bus.persistence.pool import apply_schemas
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.dead_letter import ReplayDeadLetters, Selection
from contracts.wire import Header
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.support.broker_client import BrokerClient, echo_actor, wait_until
from tests.support.dead_letter_fixtures import (
    COMPLETION_LISTENER,
    FlakyHandler,
    StartWorkerWithIngest,
    replay_of,
    wait_for_dead_letters,
)


async def test_replay_rate_limit_is_respected(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """Twenty letters at twenty a second take about a second."""
    handler = FlakyHandler()
    actor = echo_actor(handler)
    async with start_worker_with_ingest(actor):
        for number in range(20):
            await broker_client.publish(actor.step, {"text": f"{number}"})
        await wait_for_dead_letters(repository, 20, step=actor.step)
        handler.failing = False
        started = datetime.now(UTC)
        await replay.stage(pool, replay_of(actor, per_second=20))
        await wait_for_dead_letters(repository, 20, step=actor.step, state="resolved")
    assert datetime.now(UTC) - started > timedelta(seconds=0.7)


async def test_dead_letters_are_grouped_by_cause_tenant_and_time(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository
) -> None:
    """Other messages and line numbers are the same cause; another code is another group."""
    step = f"grouped-{uuid4().hex[:6]}"
    dead = broker_names.dead_letter_queue(step)

    def headers(code: str, line: int, tenant: str, at: str) -> dict[str, Any]:
        stack = f'Traceback\n  File "/srv/a/actors/echo.py", line {line}, in echo\n    x()\nKeyError: {line}'
        return {
            Header.FAULT_CODE.value: code,
            Header.FAULT_MESSAGE.value: f"at {line}",
            Header.EXCEPTION_TYPE.value: "KeyError",
            Header.EXCEPTION_STACK.value: stack,
            Header.TENANT.value: tenant,
            Header.LAST_FAILED_AT.value: at,
        }

    async with start_worker_with_ingest(queues=(dead,)):
        for code, line, tenant, at in [
            ("a", 1, "t1", "2026-01-01T00:10:00+00:00"),
            ("a", 2, "t2", "2026-01-01T00:20:00+00:00"),
            ("a", 3, "t2", "2026-01-01T05:00:00+00:00"),
            ("b", 1, "t1", "2026-01-01T00:10:00+00:00"),
        ]:
            await broker_client.publish(dead, {}, exchange="", headers=headers(code, line, tenant, at))
        await wait_for_dead_letters(repository, 4, step=step)
    selection = Selection(step=step)
    by_cause = await repository.groups(selection)
    assert [(group.code, group.letters, group.message, group.shape) for group in by_cause] == [
        ("a", 3, "at 3", ["actors/echo.py:echo"]),
        ("b", 1, "at 1", ["actors/echo.py:echo"]),
    ]
    assert {(group.code, group.tenant, group.letters) for group in await repository.groups(selection, by_tenant=True)} == {
        ("a", "t1", 1),
        ("a", "t2", 2),
        ("b", "t1", 1),
    }
    assert [group.letters for group in await repository.groups(selection, per="hour")] == [2, 1, 1]
    assert by_cause[0].states == {"unresolved": 3}


async def test_dead_letters_are_archived_restored_and_purged_by_age(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository
) -> None:
    """An unresolved letter is never purged; an archived one is restored on request, and when it fails again."""
    actor = echo_actor(FlakyHandler())
    async with start_worker_with_ingest(actor):
        message_id = await broker_client.publish(actor.step, {"text": "x"})
        await wait_for_dead_letters(repository, step=actor.step)
        selection, soon_after = Selection(step=actor.step), datetime.now(UTC) + timedelta(minutes=1)
        assert await repository.purge(selection, unchanged_since=soon_after, dry_run=False) == 0
        assert await repository.change_state(selection, "archived", by="ada", dry_run=True) == 1
        assert await repository.change_state(selection, "archived", by="ada", dry_run=False) == 1
        assert await repository.change_state(selection, "archived", by="ada", dry_run=False) == 0
        assert await repository.change_state(selection, "unresolved", by="ada", dry_run=False) == 1
        assert await repository.change_state(selection, "archived", by="ada", dry_run=False) == 1
        await broker_client.publish(actor.step, {"text": "x"}, message_id=message_id)
        await wait_for_dead_letters(repository, step=actor.step, state="failed-again")
        assert await repository.change_state(selection, "archived", by="ada", dry_run=False) == 1
        assert await repository.purge(selection, unchanged_since=datetime.now(UTC) - timedelta(days=1), dry_run=False) == 0
        assert await repository.purge(selection, unchanged_since=soon_after, dry_run=True) == 1
        assert await repository.purge(selection, unchanged_since=soon_after, dry_run=False) == 1
    assert (await repository.find(selection, 5)).total == 0


async def test_malformed_dead_letter_is_stored(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository
) -> None:
    """NUL in text, a large body, invalid values in our headers and in `x-death`: the letter is stored, and so is the next one."""
    dead = broker_names.dead_letter_queue(f"odd-{uuid4().hex[:6]}")
    step = dead.removeprefix("atelier.dead.")
    invalid_headers: dict[str, Any] = {
        Header.FAULT_MESSAGE.value: "a\0b",
        Header.LAST_FAILED_AT.value: "yesterday",
        Header.ATTEMPT.value: "many",
        "x-death": [{"count": "?", "time": "?", "routing-keys": 5}, 7],
        "deep": {"a": [{"b": bytearray(b"\xff")}]},
        "when": datetime.now(UTC),
    }
    async with start_worker_with_ingest(queues=(dead,)):
        await broker_client.publish(dead, b"x" * (1 << 20), exchange="", headers=invalid_headers, message_id="odd\0" + step)
        await broker_client.publish(dead, b"", exchange="")
        letters = await wait_for_dead_letters(repository, 2, step=step)
    assert {letter.size for letter in letters} == {1 << 20, 0}
    assert {letter.message for letter in letters} == {"a\ufffdb", ""}


async def test_dead_letter_queries_are_answered_over_bus(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient
) -> None:
    """The queries of the gateway are answered; errors are faults."""
    actor = echo_actor(FlakyHandler())
    query = partial(send_query, broker_client)
    async with start_worker_with_ingest(actor, *ACTORS[1:]):
        await broker_client.publish(actor.step, {"text": "x"})

        async def stored() -> bool:
            return bool((await query("dead-letter.list", {"selection": {"step": actor.step}}))["total"])

        await wait_until(stored)
        [letter] = (await query("dead-letter.list", {"selection": {"step": actor.step}}))["letters"]
        assert (await query("dead-letter.get", {"id": letter["id"]}))["body"] == '{"text": "x"}'
        assert (await query("dead-letter.get", {"id": "nobody"}))["code"] == "dead-letter-unknown"
        assert (await query("dead-letter.groups", {"selection": {"step": actor.step}}))["groups"][0]["letters"] == 1
        assert (await query("dead-letter.replay", {"selection": {"ids": [letter["id"]]}}))["dry_run"] is True
        assert (await query("dead-letter.replay", {"selection": {}}))["code"] == "selection-empty"
        for typo in ({"tennant": "shop"}, {"tennant": "shop", "step": actor.step}):
            assert (await query("dead-letter.replay", {"selection": typo, "dry_run": False}))["code"] == "selection-unknown"
        assert (await query("dead-letter.edit", {"id": letter["id"], "body": {"text": "y"}}))["dry_run"] is True
        move_result = await query("dead-letter.move", {"selection": {"ids": [letter["id"]]}, "to": "archived", "dry_run": False})
        assert move_result == {"dry_run": False, "to": "archived", "letters": 1}


async def send_query(broker_client: BrokerClient, step: str, body: dict[str, Any]) -> Any:
    await broker_client.publish(step, body, reply_to=broker_client.reply_queue)
    return (await broker_client.next_reply())[1]


async def test_dead_letters_are_ingested_after_database_outage(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, postgres: Any
) -> None:
    """While Postgres is stopped dead letters stay in the broker; they are stored, each once, when it runs again."""
    dead = broker_names.dead_letter_queue(f"patient-{uuid4().hex[:6]}")
    async with start_worker_with_ingest(queues=(dead,)):
        postgres.stop()
        try:
            for number in range(5):
                await broker_client.publish(dead, {"n": number}, exchange="")
            await asyncio.sleep(0.5)
        finally:
            postgres.start()
        step = dead.removeprefix("atelier.dead.")
        await wait_for_stored(repository, step, 5)
    page = await repository.find(Selection(step=step), 10)
    assert len({dead_letter.id for dead_letter in page.letters}) == 5


async def wait_for_stored(repository: DeadLetterRepository, step: str, count: int) -> None:
    async def stored() -> bool:
        try:
            return (await repository.find(Selection(step=step), 10)).total == count
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False

    await wait_until(stored, 30)


@pytest.fixture
async def http(bus_settings: BusSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(bus_settings, GatewaySettings(question_seconds=5))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        yield client


async def test_dead_letter_queries_are_answered_over_http(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, http: httpx.AsyncClient
) -> None:
    """List, groups, one letter, a dry run, a replay; errors are problem documents."""
    handler = FlakyHandler()
    actor = echo_actor(handler)
    async with start_worker_with_ingest(actor, *ACTORS[1:]):
        await broker_client.publish(actor.step, {"text": "x"})

        async def stored() -> bool:
            return bool((await http.get("/dead-letters", params={"step": actor.step})).json()["total"])

        await wait_until(stored)
        [letter] = (await http.get("/dead-letters", params={"step": actor.step})).json()["letters"]
        path = f"/dead-letters/{letter['id']}"
        assert (await http.get(path)).json()["history"][0]["kind"] == "failed"
        assert (await http.get("/dead-letters/groups", params={"step": actor.step})).json()["groups"][0]["code"] == "echo-broken"
        assert (await http.get("/dead-letters/none")).status_code == 404
        assert (await http.post("/dead-letters/replay", json={"selection": {}})).status_code == 422
        assert (await http.post("/dead-letters/replay", json={"selection": {"stpe": "x"}})).status_code == 422
        assert (await http.post(f"{path}/edit", json={"body": {"text": 1}})).json()["dry_run"] is True
        assert (await http.post("/dead-letters/none/edit", json={"body": {}})).status_code == 404
        not_json = b'{"body": {"a": NaN, "b": "\\ud800"}}'
        invalid_json = await http.post(f"{path}/edit", content=not_json, headers={"Content-Type": "application/json"})
        assert invalid_json.status_code == 422
        handler.failing = False
        dry = (await http.post("/dead-letters/replay", json={"selection": {"ids": [letter["id"]]}})).json()
        assert (dry["dry_run"], dry["letters"]) == (True, 1)
        done = (await http.post("/dead-letters/replay", json={"selection": {"ids": [letter["id"]]}, "dry_run": False})).json()
        assert done["letters"] == 1

        async def resolved() -> bool:
            return bool((await http.get(path)).json()["state"] == "resolved")

        await wait_until(resolved)
        assert (await http.post(f"{path}/edit", json={"body": {"text": "y"}})).status_code == 409


async def test_order_replayed_to_foreign_queue_is_resolved(
    bus_settings: BusSettings, store_folder: Path, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """It goes back to `image_generation`, where the repaired adapter accepts it and emits the event."""
    number = int(uuid4().int % 10**9)
    order = {"type": "image_generation", "data": {"generation_id": number, "prompt": "a fox", "prompt_tags": ["fox"]}}
    repaired = False

    def translate(body: bytes) -> TranslatedCommand:
        if not repaired:
            raise PermanentError("not-yet", "the adapter has a fault")
        return TranslatedCommand("upload", {"name": "n", "images": []}, f"gen-{number}", f"job-{number}")

    adapter = Adapter(broker_names.IMAGE_GENERATION_QUEUE, broker_names.IMAGE_GENERATION_QUEUE, translate)
    ingest = DeadLetterIngest("ingest", (broker_names.dead_letter_queue(broker_names.IMAGE_GENERATION_QUEUE),))
    async with Worker((COMPLETION_LISTENER,), (adapter,), bus_settings, StoreSettings(store_url=store_folder.as_uri()), (ingest,)).run():
        message_id = await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, order, exchange="")
        [letter] = await wait_for_dead_letters(repository, message_id=message_id)
        assert (letter.step, letter.target, letter.state) == (
            broker_names.IMAGE_GENERATION_QUEUE,
            broker_names.IMAGE_GENERATION_QUEUE,
            "unresolved",
        )
        repaired = True
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id]), dry_run=False))
        await wait_for_dead_letters(repository, message_id=message_id, state="resolved")


async def test_table_of_an_earlier_release_gets_the_column_of_the_properties(pool: asyncpg.Pool, repository: DeadLetterRepository) -> None:
    await pool.execute("alter table atelier.dead_letters drop column properties")
    assert not await repository.schema_exists()
    await apply_schemas(pool, [SCHEMA])
    assert await repository.schema_exists()
