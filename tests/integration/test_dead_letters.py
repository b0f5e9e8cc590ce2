"""Dead letters on the real broker and the real database: taken in, sent again to one queue, resolved or failed again."""

# ruff: noqa: F811 - a fixture that is imported is named again as an argument

import asyncio
import json
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest

from bus.dead_letters import replay
from bus.dead_letters.cabinet import Cabinet
from bus.errors import PermanentError
from contracts import channels
from contracts.dead_letter import EditDeadLetter, ReplayDeadLetters, Selection
from contracts.wire import Header
from tests.integration.conftest import Customer, echo_actor, soon
from tests.integration.desk import HEARING, Craft, Desk, cabinet, desk, everything_of, kept, pool, size_of  # noqa: F401


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
