"""Dead letters kept: their pace, groups, ages, and what operators ask of them, over the bus and over HTTP."""

# ruff: noqa: F811 - a fixture that is imported is named again as an argument

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
from bus.adapter import Adapter, Translated
from bus.dead_letters import replay
from bus.dead_letters.cabinet import Cabinet
from bus.dead_letters.intake import Intake
from bus.errors import PermanentError
from bus.serve import open_workshop
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from contracts import channels
from contracts.dead_letter import ReplayDeadLetters, Selection
from contracts.wire import Header
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.integration.conftest import Customer, echo_actor, soon
from tests.integration.desk import HEARING, Craft, Desk, cabinet, desk, everything_of, kept, pool, size_of  # noqa: F401


async def test_the_pace_of_a_replay_is_kept(desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool) -> None:
    """Twenty letters at twenty a second take about a second."""
    craft = Craft()
    actor = echo_actor(craft)
    async with desk(actor):
        for number in range(20):
            await customer.send(actor.step, {"text": f"{number}"})
        await kept(cabinet, 20, step=actor.step)
        craft.broken = False
        started = datetime.now(UTC)
        await replay.stage(pool, everything_of(actor, per_second=20))
        await kept(cabinet, 20, step=actor.step, state="resolved")
    assert datetime.now(UTC) - started > timedelta(seconds=0.7)


async def test_groups_are_by_cause_tenant_and_time(desk: Desk, customer: Customer, cabinet: Cabinet) -> None:
    """Messages and line numbers differ, the cause is one; another code is another group."""
    step = f"grouped-{uuid4().hex[:6]}"
    dead = channels.dead_queue(step)

    def headers(code: str, line: int, tenant: str, at: str) -> dict[str, Any]:
        stack = f'Traceback\n  File "/srv/a/actors/echo.py", line {line}, in echo\n    x()\nKeyError: {line}'
        return {
            Header.FAULT_CODE.value: code,
            Header.FAULT_MESSAGE.value: f"at {line}",
            Header.EXCEPTION_TYPE.value: "KeyError",
            Header.EXCEPTION_STACK.value: stack,
            Header.TENANT.value: tenant,
            Header.LAST_FAILED.value: at,
        }

    async with desk(queues=(dead,)):
        for code, line, tenant, at in [
            ("a", 1, "t1", "2026-01-01T00:10:00+00:00"),
            ("a", 2, "t2", "2026-01-01T00:20:00+00:00"),
            ("a", 3, "t2", "2026-01-01T05:00:00+00:00"),
            ("b", 1, "t1", "2026-01-01T00:10:00+00:00"),
        ]:
            await customer.send(dead, {}, exchange="", headers=headers(code, line, tenant, at))
        await kept(cabinet, 4, step=step)
    chosen = Selection(step=step)
    by_cause = await cabinet.groups(chosen)
    assert [(group.code, group.letters, group.message, group.shape) for group in by_cause] == [
        ("a", 3, "at 3", ["actors/echo.py:echo"]),
        ("b", 1, "at 1", ["actors/echo.py:echo"]),
    ]
    assert {(group.code, group.tenant, group.letters) for group in await cabinet.groups(chosen, by_tenant=True)} == {
        ("a", "t1", 1),
        ("a", "t2", 2),
        ("b", "t1", 1),
    }
    assert [group.letters for group in await cabinet.groups(chosen, per="hour")] == [2, 1, 1]
    assert by_cause[0].states == {"unresolved": 3}


async def test_letters_are_archived_restored_and_purged_by_age(desk: Desk, customer: Customer, cabinet: Cabinet) -> None:
    """What is unresolved is never purged; an archived letter comes back when asked, and when it fails again."""
    actor = echo_actor(Craft())
    async with desk(actor):
        message_id = await customer.send(actor.step, {"text": "x"})
        await kept(cabinet, step=actor.step)
        chosen, soon_after = Selection(step=actor.step), datetime.now(UTC) + timedelta(minutes=1)
        assert await cabinet.purge(chosen, unchanged_since=soon_after, dry_run=False) == 0
        assert await cabinet.move(chosen, "archived", by="ada", dry_run=True) == 1
        assert await cabinet.move(chosen, "archived", by="ada", dry_run=False) == 1
        assert await cabinet.move(chosen, "archived", by="ada", dry_run=False) == 0
        assert await cabinet.move(chosen, "unresolved", by="ada", dry_run=False) == 1
        assert await cabinet.move(chosen, "archived", by="ada", dry_run=False) == 1
        await customer.send(actor.step, {"text": "x"}, message_id=message_id)
        await kept(cabinet, step=actor.step, state="failed-again")
        assert await cabinet.move(chosen, "archived", by="ada", dry_run=False) == 1
        assert await cabinet.purge(chosen, unchanged_since=datetime.now(UTC) - timedelta(days=1), dry_run=False) == 0
        assert await cabinet.purge(chosen, unchanged_since=soon_after, dry_run=True) == 1
        assert await cabinet.purge(chosen, unchanged_since=soon_after, dry_run=False) == 1
    assert (await cabinet.page(chosen, 5)).total == 0


async def test_a_hostile_letter_is_kept_all_the_same(desk: Desk, customer: Customer, cabinet: Cabinet) -> None:
    """NUL in text, a huge body, nonsense in our headers and in `x-death`: nothing keeps a letter out, and its neighbour comes in too."""
    dead = channels.dead_queue(f"odd-{uuid4().hex[:6]}")
    step = dead.removeprefix("atelier.dead.")
    nonsense: dict[str, Any] = {
        Header.FAULT_MESSAGE.value: "a\0b",
        Header.LAST_FAILED.value: "yesterday",
        Header.ATTEMPT.value: "many",
        "x-death": [{"count": "?", "time": "?", "routing-keys": 5}, 7],
        "deep": {"a": [{"b": bytearray(b"\xff")}]},
        "when": datetime.now(UTC),
    }
    async with desk(queues=(dead,)):
        await customer.send(dead, b"x" * (1 << 20), exchange="", headers=nonsense, message_id="odd\0" + step)
        await customer.send(dead, b"", exchange="")
        letters = await kept(cabinet, 2, step=step)
    assert {letter.size for letter in letters} == {1 << 20, 0}
    assert {letter.message for letter in letters} == {"a\ufffdb", ""}


async def test_operators_ask_over_the_bus(desk: Desk, customer: Customer) -> None:
    """The questions that the gateway asks are answered, and their refusals are faults."""
    actor = echo_actor(Craft())
    asked = partial(_ask, customer)
    async with desk(actor, *ACTORS[1:]):
        await customer.send(actor.step, {"text": "x"})

        async def there() -> bool:
            return bool((await asked("dead-letter.list", {"selection": {"step": actor.step}}))["total"])

        await soon(there)
        [letter] = (await asked("dead-letter.list", {"selection": {"step": actor.step}}))["letters"]
        assert (await asked("dead-letter.get", {"id": letter["id"]}))["body"] == '{"text": "x"}'
        assert (await asked("dead-letter.get", {"id": "nobody"}))["code"] == "dead-letter-unknown"
        assert (await asked("dead-letter.groups", {"selection": {"step": actor.step}}))["groups"][0]["letters"] == 1
        assert (await asked("dead-letter.replay", {"selection": {"ids": [letter["id"]]}}))["dry_run"] is True
        assert (await asked("dead-letter.replay", {"selection": {}}))["code"] == "selection-empty"
        assert (await asked("dead-letter.edit", {"id": letter["id"], "body": {"text": "y"}}))["dry_run"] is True
        moved = await asked("dead-letter.move", {"selection": {"ids": [letter["id"]]}, "to": "archived", "dry_run": False})
        assert moved == {"dry_run": False, "to": "archived", "letters": 1}


async def _ask(customer: Customer, step: str, body: dict[str, Any]) -> Any:
    await customer.send(step, body, reply_to=customer.reply_queue)
    return (await customer.reply())[1]


async def test_letters_survive_a_database_that_is_away(desk: Desk, customer: Customer, cabinet: Cabinet, postgres: Any) -> None:
    """While Postgres is stopped letters stay with the broker; when it is back they come in."""
    dead = channels.dead_queue(f"patient-{uuid4().hex[:6]}")
    async with desk(queues=(dead,)):
        postgres.stop()
        try:
            for number in range(5):
                await customer.send(dead, {"n": number}, exchange="")
            await asyncio.sleep(0.5)
        finally:
            postgres.start()
        await kept_again(cabinet, dead.removeprefix("atelier.dead."), 5)


async def kept_again(cabinet: Cabinet, step: str, count: int) -> None:
    async def there() -> bool:
        try:
            return (await cabinet.page(Selection(step=step), 10)).total == count
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False

    await soon(there, 30)


@pytest.fixture
async def http(bus_settings: BusSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(bus_settings, GatewaySettings(question_seconds=5))
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def test_the_console_asks_over_http(desk: Desk, customer: Customer, http: httpx.AsyncClient) -> None:
    """List, groups, one letter, a dry run, a replay and the refusals, as problem documents."""
    craft = Craft()
    actor = echo_actor(craft)
    async with desk(actor, *ACTORS[1:]):
        await customer.send(actor.step, {"text": "x"})

        async def there() -> bool:
            return bool((await http.get("/dead-letters", params={"step": actor.step})).json()["total"])

        await soon(there)
        [letter] = (await http.get("/dead-letters", params={"step": actor.step})).json()["letters"]
        path = f"/dead-letters/{letter['id']}"
        assert (await http.get(path)).json()["history"][0]["kind"] == "failed"
        assert (await http.get("/dead-letters/groups", params={"step": actor.step})).json()["groups"][0]["code"] == "echo-broken"
        assert (await http.get("/dead-letters/none")).status_code == 404
        assert (await http.post("/dead-letters/replay", json={"selection": {}})).status_code == 422
        assert (await http.post("/dead-letters/replay", json={"selection": {"stpe": "x"}})).status_code == 422
        assert (await http.post("/dead-letters/replay", json={"selection": {"step": "a\0"}})).status_code == 422
        assert (await http.post(f"{path}/edit", json={"body": {"text": 1}})).json()["dry_run"] is True
        assert (await http.post("/dead-letters/none/edit", json={"body": {}})).status_code == 404
        nothing_plain = await http.post(f"{path}/edit", content=b'{"body": {"a": NaN, "b": "\\ud800"}}')
        assert nothing_plain.status_code == 422
        craft.broken = False
        dry = (await http.post("/dead-letters/replay", json={"selection": {"ids": [letter["id"]]}})).json()
        assert (dry["dry_run"], dry["letters"]) == (True, 1)
        done = (await http.post("/dead-letters/replay", json={"selection": {"ids": [letter["id"]]}, "dry_run": False})).json()
        assert done["letters"] == 1

        async def resolved() -> bool:
            return bool((await http.get(path)).json()["state"] == "resolved")

        await soon(resolved)
        assert (await http.post(f"{path}/edit", json={"body": {"text": "y"}})).status_code == 409


async def test_an_order_sent_again_to_the_foreign_queue_is_resolved(
    bus_settings: BusSettings, store_folder: Path, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool
) -> None:
    """It goes back to `image_generation`, where the adapter takes it this time and says so."""
    number = int(uuid4().int % 10**9)
    order = {"type": "image_generation", "data": {"generation_id": number, "prompt": "a fox", "prompt_tags": ["fox"]}}
    mended = False

    def translate(body: bytes) -> Translated:
        if not mended:
            raise PermanentError("not-yet", "the adapter has a fault")
        return Translated("upload", {"name": "n", "images": []}, f"gen-{number}", f"job-{number}")

    adapter = Adapter(channels.IMAGE_GENERATION, channels.IMAGE_GENERATION, translate)
    intake = Intake("intake", (channels.dead_queue(channels.IMAGE_GENERATION),))
    async with open_workshop((HEARING,), (adapter,), bus_settings, StoreSettings(store_url=store_folder.as_uri()), (intake,)):
        message_id = await customer.send(channels.IMAGE_GENERATION, order, exchange="")
        [letter] = await kept(cabinet, message_id=message_id)
        assert (letter.step, letter.target, letter.state) == (channels.IMAGE_GENERATION, channels.IMAGE_GENERATION, "unresolved")
        mended = True
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id]), dry_run=False))
        await kept(cabinet, message_id=message_id, state="resolved")
