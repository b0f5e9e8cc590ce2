"""Dead letters on the real broker and the real database: taken in, grouped, sent again to one queue, resolved or failed again."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from actors.dead_letters import ACTORS
from bus.actor import Actor, Context
from bus.adapter import Adapter, Translated
from bus.database import make_tables, open_database
from bus.dead_letters import replay
from bus.dead_letters.cabinet import SCHEMA, Cabinet
from bus.dead_letters.intake import Intake
from bus.errors import PermanentError
from bus.serve import open_workshop
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from contracts import channels
from contracts.dead_letter import EditDeadLetter, ReplayDeadLetters, Selection, WholeDeadLetter
from contracts.wire import Header
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.integration.conftest import Customer, Echo, Echoed, echo_actor, soon

HEARING = ACTORS[0]


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_database(bus_settings) as pool:
        await make_tables(pool, [SCHEMA])
        yield pool


@pytest.fixture
def cabinet(pool: asyncpg.Pool) -> Cabinet:
    return Cabinet(pool)


Desk = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def desk(bus_settings: BusSettings, store_folder: Path) -> Desk:
    """`async with desk(actor, …):` serves actors, and beside them the intake of their dead letters."""

    def opened(*actors: Actor, foreign: tuple[str, ...] = (), queues: tuple[str, ...] = ()) -> AbstractAsyncContextManager[None]:
        intake = Intake("intake", (*(channels.dead_queue(actor.step) for actor in actors if not actor.question), *queues), foreign)
        store = StoreSettings(store_url=store_folder.as_uri())
        return open_workshop((HEARING, *actors), (), bus_settings, store, (intake,))

    return opened


class Craft:
    """An echo that fails until it is repaired, and notes what it did."""

    def __init__(self) -> None:
        self.broken = True
        self.done: list[tuple[str, str]] = []
        self.tries: list[tuple[str, int]] = []

    async def __call__(self, command: Echo, context: Context) -> Echoed:
        self.tries.append((context.message_id, context.attempt))
        if self.broken:
            raise PermanentError("echo-broken", f"cannot say {command.text}")
        self.done.append((context.message_id, command.text))
        return Echoed(text=command.text)


async def kept(cabinet: Cabinet, count: int = 1, **selection: Any) -> list[WholeDeadLetter]:
    """The letters that match, as soon as there are so many."""

    async def there() -> bool:
        return (await cabinet.page(Selection(**selection), 500)).total >= count

    await soon(there)
    return [await cabinet.get(letter.id) for letter in (await cabinet.page(Selection(**selection), 500)).letters]


def everything_of(actor: Actor, **more: Any) -> ReplayDeadLetters:
    return ReplayDeadLetters(selection=Selection(step=actor.step), dry_run=False, **more)


async def size_of(customer: Customer, queue: str) -> int:
    return int((await customer.channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0)


async def test_a_letter_is_taken_in_with_its_cause(desk: Desk, customer: Customer, cabinet: Cabinet) -> None:
    """Body, headers, cause and history are in the cabinet, and the queue of dead letters is empty."""
    actor = echo_actor(Craft())
    async with desk(actor):
        message_id = await customer.send(actor.step, {"text": "안녕"}, correlation_id="job-9", headers={Header.TENANT.value: "acme"})
        [letter] = await kept(cabinet, step=actor.step)
    assert (letter.state, letter.code, letter.message, letter.exception_type) == (
        "unresolved",
        "echo-broken",
        "cannot say 안녕",
        "PermanentError",
    )
    assert (letter.message_id, letter.job_id, letter.tenant, letter.target) == (message_id, "job-9", "acme", actor.queue)
    assert json.loads(letter.body or "") == {"text": "안녕"}
    assert "cannot say" in letter.stack
    assert [entry.kind for entry in letter.history] == ["failed"]
    assert await size_of(customer, channels.dead_queue(actor.step)) == 0


async def test_a_replay_reaches_the_failing_queue_alone_and_is_resolved(
    desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool
) -> None:
    """Same id, first attempt, nobody to reply to; another queue on the same topic does not hear of it."""
    craft = Craft()
    actor = echo_actor(craft)
    async with desk(actor):
        other = await customer.channel.declare_queue(exclusive=True)
        await other.bind(channels.COMMANDS, actor.step)
        message_id = await customer.send(actor.step, {"text": "x"}, reply_to=customer.reply_queue)
        assert (await customer.reply())[0] == "fault.v1"
        await kept(cabinet, step=actor.step)
        craft.broken = False
        assert (await replay.stage(pool, everything_of(actor, by="ada"))).letters == 1
        [letter] = await kept(cabinet, step=actor.step, state="resolved")
        assert await size_of(customer, other.name) == 1
        assert customer.replies.empty()
    assert craft.done == [(message_id, "x")]
    assert craft.tries == [(message_id, 1), (message_id, 1)]
    assert [entry.kind for entry in letter.history] == ["failed", "replay-requested", "sent", "resolved"]
    assert letter.history[1].said["by"] == "ada"


async def test_a_letter_that_fails_again_is_counted(desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool) -> None:
    """It is the same letter, with its state and the count; and it may be sent once more."""
    craft = Craft()
    actor = echo_actor(craft)
    async with desk(actor):
        await customer.send(actor.step, {"text": "x"})
        [first] = await kept(cabinet, step=actor.step)
        await replay.stage(pool, everything_of(actor))
        [again] = await kept(cabinet, step=actor.step, state="failed-again")
        assert (again.id, again.failures, again.replays) == (first.id, 2, 1)
        assert again.first_failed_at == first.first_failed_at < again.last_failed_at
        craft.broken = False
        await replay.stage(pool, everything_of(actor))
        [letter] = await kept(cabinet, step=actor.step, state="resolved")
    assert (letter.failures, letter.replays, len(craft.done)) == (2, 2, 1)


async def test_a_dry_run_sends_nothing(desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool) -> None:
    actor = echo_actor(Craft())
    async with desk(actor):
        await customer.send(actor.step, {"text": "x"})
        [letter] = await kept(cabinet, step=actor.step)
        told = await replay.stage(pool, ReplayDeadLetters(selection=Selection(step=actor.step)))
        assert (told.dry_run, told.letters, told.ids, told.replay_id) == (True, 1, [letter.id], None)
        assert (await cabinet.get(letter.id)).state == "unresolved"


async def test_nothing_selected_is_not_everything(pool: asyncpg.Pool, cabinet: Cabinet) -> None:
    """A filter that was forgotten must not send or file the whole cabinet."""
    with pytest.raises(PermanentError, match="nothing is selected"):
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(), dry_run=False))
    with pytest.raises(PermanentError, match="nothing is selected"):
        await cabinet.move(Selection(), "archived", by="", dry_run=True)


async def test_two_operators_do_not_double_a_group(desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool) -> None:
    """Both ask at the same moment: every letter is sent once."""
    craft = Craft()
    actor = echo_actor(craft)
    async with desk(actor):
        for number in range(40):
            await customer.send(actor.step, {"text": f"{number}"})
        letters = await kept(cabinet, 40, step=actor.step)
        craft.broken = False
        craft.tries.clear()
        request = ReplayDeadLetters(selection=Selection(group=letters[0].group_id), dry_run=False)
        told = await asyncio.gather(*(replay.stage(pool, request) for _ in range(4)))
        assert sum(one.letters for one in told) == 40
        await kept(cabinet, 40, step=actor.step, state="resolved")
    assert len(craft.tries) == len(craft.done) == 40


async def test_the_inbox_answers_for_work_that_had_been_done(desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool) -> None:
    """Replayed under its own id the work is not done twice; `again` forces it under a new id."""
    craft = Craft()
    craft.broken = False
    actor = echo_actor(craft)
    async with desk(actor):
        message_id = await customer.send(actor.step, {"text": "x"}, reply_to=customer.reply_queue)
        await customer.reply()
        await customer.send(channels.dead_queue(actor.step), {"text": "x"}, exchange="", message_id=message_id)
        await kept(cabinet, step=actor.step, state="unresolved")
        await replay.stage(pool, everything_of(actor))
        await kept(cabinet, step=actor.step, state="resolved")
        assert len(craft.done) == 1

        await customer.send(channels.dead_queue(actor.step), {"text": "x"}, exchange="", message_id=message_id, headers={"x-other": 1})
        stamp = {Header.LAST_FAILED.value: datetime.now(UTC).isoformat()}
        await customer.send(channels.dead_queue(actor.step), {"text": "x"}, exchange="", message_id=message_id, headers=stamp)
        await kept(cabinet, step=actor.step, state="failed-again")
        await replay.stage(pool, everything_of(actor, again=True))
        [letter] = await kept(cabinet, step=actor.step, state="resolved")
    assert len(craft.done) == 2
    assert craft.done[1][0] == letter.sent_as != message_id


async def test_a_letter_sent_under_a_new_id_that_dies_again_is_the_same_letter(
    desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool
) -> None:
    actor = echo_actor(Craft())
    async with desk(actor):
        await customer.send(actor.step, {"text": "x"})
        [first] = await kept(cabinet, step=actor.step)
        await replay.stage(pool, everything_of(actor, again=True))
        [letter] = await kept(cabinet, step=actor.step, state="failed-again")
    assert (letter.id, letter.message_id, letter.failures) == (first.id, first.message_id, 2)
    assert letter.sent_as != first.message_id


async def test_the_same_letter_read_twice_is_one(desk: Desk, customer: Customer, cabinet: Cabinet) -> None:
    """A redelivery after the write and before the ack changes nothing."""
    actor = echo_actor(Craft())
    stamps = {Header.FIRST_FAILED.value: "2026-01-01T00:00:00+00:00", Header.LAST_FAILED.value: "2026-01-01T00:01:00+00:00"}
    async with desk(actor):
        for _ in range(3):
            await customer.send(channels.dead_queue(actor.step), {"text": "x"}, exchange="", message_id="one" + actor.step, headers=stamps)
        await kept(cabinet, step=actor.step)

        async def empty() -> bool:
            return await size_of(customer, channels.dead_queue(actor.step)) == 0

        await soon(empty)
        [letter] = await kept(cabinet, step=actor.step)
    assert (letter.failures, letter.state, len(letter.history)) == (1, "unresolved", 1)


async def test_a_foreign_letter_is_taken_in_and_sent_back(desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool) -> None:
    """A plain dead-letter exchange, no header of ours: the broker's own record tells where it died. `CC` is not followed again."""
    name, dead = f"orders-{uuid4().hex[:6]}", f"orders-dlq-{uuid4().hex[:6]}"
    await customer.channel.declare_queue(dead, durable=True)
    bystander = await customer.channel.declare_queue(exclusive=True)
    work = await customer.channel.declare_queue(
        name, durable=True, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    )
    async with desk(foreign=(dead,)):
        body = b"\x00\xffnot json"
        headers = {"tenant-of-theirs": "t", "CC": [bystander.name]}
        await customer.send(name, body, exchange="", content_type="application/x-thing", headers=headers, message_id="m-1" + name)
        await (await work.get(timeout=5)).reject(requeue=False)
        [letter] = await kept(cabinet, dead_queue=dead, step=name)
        assert (letter.code, letter.target, letter.body, letter.body_base64) == ("broker-rejected", name, None, "AP9ub3QganNvbg==")
        assert await size_of(customer, bystander.name) == 1
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id]), dry_run=False))
        message = await customer.letter_in(name)
        assert await size_of(customer, bystander.name) == 1
        assert (message.message_id, message.body, message.content_type) == ("m-1" + name, body, "application/x-thing")
        assert message.headers["tenant-of-theirs"] == "t"
        assert not [header for header in message.headers if header.startswith("x-")]
        assert message.headers[Header.REPLAY] == 1
        assert message.reply_to is None


async def test_a_letter_whose_queue_is_gone_goes_back(desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool) -> None:
    """Nothing is lost, and the history says why it was not sent; its neighbour in the same replay is."""
    dead = channels.dead_queue(f"none-{uuid4().hex[:6]}")
    there = await customer.channel.declare_queue(f"there-{uuid4().hex[:6]}", durable=True)
    async with desk(queues=(dead,)):
        await customer.send(dead, {"a": 1}, exchange="", headers={Header.ORIGIN_QUEUE.value: "no-such-queue"})
        await customer.send(dead, {"a": 2}, exchange="", headers={Header.ORIGIN_QUEUE.value: there.name})
        letters = await kept(cabinet, 2, step=dead.removeprefix("atelier.dead."))
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id for letter in letters]), dry_run=False))
        await customer.letter_in(there.name)

        async def back() -> bool:
            histories = [(await cabinet.get(letter.id)).history for letter in letters]
            return any(entry.kind == "not-sent" for history in histories for entry in history)

        await soon(back)
        [letter] = await kept(cabinet, step=letters[0].step, state="unresolved")
    assert "no queue takes" in letter.history[-1].said["why"]


async def test_an_edited_letter_goes_out_under_a_new_id(desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool) -> None:
    """The old letter is resolved by it; if the copy dies, it is a letter of its own that names the old one."""
    dead = channels.dead_queue("upload")
    claim = {"uri": "file:///x", "sha256": "0" * 64, "media_type": "image/png", "size": 1}
    body = {"name": "n", "images": [claim]}
    async with desk(queues=(dead,)):
        message_id = await customer.send(dead, b"{broken", exchange="", type="upload.v9")
        [letter] = await kept(cabinet, message_id=message_id)
        with pytest.raises(PermanentError, match="breaks the contract Upload") as refused:
            await replay.edit(pool, EditDeadLetter(id=letter.id, body={"images": 5}, dry_run=False))
        assert refused.value.code == "invalid-message"
        told = await replay.edit(pool, EditDeadLetter(id=letter.id, body=body))
        assert (told.dry_run, told.contract, told.message_id) == (True, "Upload", None)
        told = await replay.edit(pool, EditDeadLetter(id=letter.id, body=body, dry_run=False))
        message = await customer.letter_in(channels.work_queue("upload"))
        assert (message.message_id, json.loads(message.body), message.type) == (told.message_id, body, "upload.v1")
        assert message.headers[Header.CAUSATION] == message_id
        await kept(cabinet, state="resolved", message_id=message_id)
        with pytest.raises(PermanentError, match="somebody has dealt with it"):
            await replay.edit(pool, EditDeadLetter(id=letter.id, body=body, dry_run=False))
        await customer.send(dead, json.dumps(body).encode(), exchange="", message_id=told.message_id)

        async def copy_is_kept() -> bool:
            return (await cabinet.page(Selection(message_id=told.message_id), 5)).total == 2

        await soon(copy_is_kept)
        [copy] = await kept(cabinet, message_id=told.message_id, state="unresolved")
    assert (copy.id != letter.id, copy.edited_from) == (True, letter.id)


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
