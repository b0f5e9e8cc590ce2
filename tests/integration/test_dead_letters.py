"""Dead letters on the real broker and the real database: ingest, replay to one queue, resolved or failed again."""

import asyncio
import json
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest

from bus.dead_letters import replay
from bus.dead_letters.repository import DeadLetterRepository
from bus.errors import PermanentError
from contracts import broker_names
from contracts.dead_letter import EditDeadLetter, ReplayDeadLetters, Selection
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, echo_actor, wait_until
from tests.support.dead_letter_fixtures import (
    FlakyHandler,
    StartWorkerWithIngest,
    queue_size,
    replay_of,
    wait_for_dead_letters,
)


async def test_dead_letter_is_ingested_with_cause(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository
) -> None:
    """Body, headers, cause and history are in the database, and the dead-letter queue is empty."""
    actor = echo_actor(FlakyHandler())
    async with start_worker_with_ingest(actor):
        message_id = await broker_client.publish(
            actor.step, {"text": "안녕"}, correlation_id="job-9", headers={Header.TENANT.value: "acme"}
        )
        [letter] = await wait_for_dead_letters(repository, step=actor.step)
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
    assert await queue_size(broker_client, broker_names.dead_letter_queue(actor.step)) == 0


async def test_replay_reaches_only_failed_queue_and_is_resolved(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """Same id, first attempt, no reply; another queue on the same topic receives nothing."""
    handler = FlakyHandler()
    actor = echo_actor(handler)
    async with start_worker_with_ingest(actor):
        other = await broker_client.channel.declare_queue(exclusive=True)
        await other.bind(broker_names.COMMANDS_EXCHANGE, actor.step)
        message_id = await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[0] == "fault.v1"
        await wait_for_dead_letters(repository, step=actor.step)
        handler.failing = False
        assert (await replay.stage(pool, replay_of(actor, by="ada"))).letters == 1
        [letter] = await wait_for_dead_letters(repository, step=actor.step, state="resolved")
        assert await queue_size(broker_client, other.name) == 1
        assert broker_client.replies.empty()
    assert handler.completed == [(message_id, "x")]
    assert handler.attempts == [(message_id, 1), (message_id, 1)]
    assert [entry.kind for entry in letter.history] == ["failed", "replay-requested", "sent", "resolved"]
    assert letter.history[1].said["by"] == "ada"


async def test_repeated_failure_increments_attempt_count(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """It stays the same letter, its failures are counted, and it may be replayed once more."""
    handler = FlakyHandler()
    actor = echo_actor(handler)
    async with start_worker_with_ingest(actor):
        await broker_client.publish(actor.step, {"text": "x"})
        [first] = await wait_for_dead_letters(repository, step=actor.step)
        await replay.stage(pool, replay_of(actor))
        [again] = await wait_for_dead_letters(repository, step=actor.step, state="failed-again")
        assert (again.id, again.failures, again.replays) == (first.id, 2, 1)
        assert again.first_failed_at == first.first_failed_at < again.last_failed_at
        handler.failing = False
        await replay.stage(pool, replay_of(actor))
        [letter] = await wait_for_dead_letters(repository, step=actor.step, state="resolved")
    assert (letter.failures, letter.replays, len(handler.completed)) == (2, 2, 1)


async def test_dry_run_publishes_nothing(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    actor = echo_actor(FlakyHandler())
    async with start_worker_with_ingest(actor):
        await broker_client.publish(actor.step, {"text": "x"})
        [letter] = await wait_for_dead_letters(repository, step=actor.step)
        staged = await replay.stage(pool, ReplayDeadLetters(selection=Selection(step=actor.step)))
        assert (staged.dry_run, staged.letters, staged.ids, staged.replay_id) == (True, 1, [letter.id], None)
        assert (await repository.get(letter.id)).state == "unresolved"


async def test_empty_selection_selects_nothing(pool: asyncpg.Pool, repository: DeadLetterRepository) -> None:
    """A forgotten filter must not replay or archive all letters."""
    with pytest.raises(PermanentError, match="nothing is selected"):
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(), dry_run=False))
    with pytest.raises(PermanentError, match="nothing is selected"):
        await repository.change_state(Selection(), "archived", by="", dry_run=True)


async def test_concurrent_replays_of_group_publish_once(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """Four concurrent requests for one group: every letter is sent once."""
    handler = FlakyHandler()
    actor = echo_actor(handler)
    async with start_worker_with_ingest(actor):
        for number in range(40):
            await broker_client.publish(actor.step, {"text": f"{number}"})
        letters = await wait_for_dead_letters(repository, 40, step=actor.step)
        handler.failing = False
        handler.attempts.clear()
        request = ReplayDeadLetters(selection=Selection(group=letters[0].group_id), dry_run=False)
        replays = await asyncio.gather(*(replay.stage(pool, request) for _ in range(4)))
        assert sum(staged.letters for staged in replays) == 40
        await wait_for_dead_letters(repository, 40, step=actor.step, state="resolved")
    assert len(handler.attempts) == len(handler.completed) == 40


async def test_replayed_completed_work_is_answered_from_inbox(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """A replay under its own id does not repeat the work; `again` does, under a new id."""
    handler = FlakyHandler()
    handler.failing = False
    actor = echo_actor(handler)
    async with start_worker_with_ingest(actor):
        message_id = await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        await broker_client.next_reply()
        await broker_client.publish(broker_names.dead_letter_queue(actor.step), {"text": "x"}, exchange="", message_id=message_id)
        await wait_for_dead_letters(repository, step=actor.step, state="unresolved")
        await replay.stage(pool, replay_of(actor))
        await wait_for_dead_letters(repository, step=actor.step, state="resolved")
        assert len(handler.completed) == 1

        await broker_client.publish(
            broker_names.dead_letter_queue(actor.step), {"text": "x"}, exchange="", message_id=message_id, headers={"x-other": 1}
        )
        timestamps = {Header.LAST_FAILED_AT.value: datetime.now(UTC).isoformat()}
        await broker_client.publish(
            broker_names.dead_letter_queue(actor.step), {"text": "x"}, exchange="", message_id=message_id, headers=timestamps
        )
        await wait_for_dead_letters(repository, step=actor.step, state="failed-again")
        await replay.stage(pool, replay_of(actor, again=True))
        [letter] = await wait_for_dead_letters(repository, step=actor.step, state="resolved")
    assert len(handler.completed) == 2
    assert handler.completed[1][0] == letter.sent_as != message_id


async def test_replay_under_new_id_that_fails_updates_same_dead_letter(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    actor = echo_actor(FlakyHandler())
    async with start_worker_with_ingest(actor):
        await broker_client.publish(actor.step, {"text": "x"})
        [first] = await wait_for_dead_letters(repository, step=actor.step)
        await replay.stage(pool, replay_of(actor, again=True))
        [letter] = await wait_for_dead_letters(repository, step=actor.step, state="failed-again")
    assert (letter.id, letter.message_id, letter.failures) == (first.id, first.message_id, 2)
    assert letter.sent_as != first.message_id


async def test_dead_letter_ingested_twice_is_one_row(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository
) -> None:
    """A redelivery after the write and before the ack changes nothing."""
    actor = echo_actor(FlakyHandler())
    timestamps = {Header.FIRST_FAILED_AT.value: "2026-01-01T00:00:00+00:00", Header.LAST_FAILED_AT.value: "2026-01-01T00:01:00+00:00"}
    async with start_worker_with_ingest(actor):
        for _ in range(3):
            await broker_client.publish(
                broker_names.dead_letter_queue(actor.step), {"text": "x"}, exchange="", message_id="one" + actor.step, headers=timestamps
            )
        await wait_for_dead_letters(repository, step=actor.step)

        async def empty() -> bool:
            return await queue_size(broker_client, broker_names.dead_letter_queue(actor.step)) == 0

        await wait_until(empty)
        [letter] = await wait_for_dead_letters(repository, step=actor.step)
    assert (letter.failures, letter.state, len(letter.history)) == (1, "unresolved", 1)


async def test_foreign_dead_letter_is_ingested_and_replayed(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """A plain dead-letter exchange without our headers: `x-death` names the queue that failed. `CC` is not used again."""
    name, dead = f"orders-{uuid4().hex[:6]}", f"orders-dlq-{uuid4().hex[:6]}"
    await broker_client.channel.declare_queue(dead, durable=True)
    bystander = await broker_client.channel.declare_queue(exclusive=True)
    work = await broker_client.channel.declare_queue(
        name, durable=True, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    )
    async with start_worker_with_ingest(foreign=(dead,)):
        body = b"\x00\xffnot json"
        headers = {"tenant-of-theirs": "t", "CC": [bystander.name]}
        await broker_client.publish(name, body, exchange="", content_type="application/x-thing", headers=headers, message_id="m-1" + name)
        await (await work.get(timeout=5)).reject(requeue=False)
        [letter] = await wait_for_dead_letters(repository, step=name)
        assert (letter.code, letter.target, letter.body, letter.body_base64) == ("broker-rejected", name, None, "AP9ub3QganNvbg==")
        assert await queue_size(broker_client, bystander.name) == 1
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id]), dry_run=False))
        message = await broker_client.take_message(name)
        assert await queue_size(broker_client, bystander.name) == 1
        assert (message.message_id, message.body, message.content_type) == ("m-1" + name, body, "application/x-thing")
        assert message.headers["tenant-of-theirs"] == "t"
        assert not [header for header in message.headers if header.startswith("x-")]
        assert message.headers[Header.REPLAY] == 1
        assert message.reply_to is None


async def test_replay_to_missing_queue_returns_to_unresolved(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """The letter is kept, its history has the reason, and the other letter of the same replay is sent."""
    missing, there = f"none-{uuid4().hex[:6]}", f"there-{uuid4().hex[:6]}"
    target = await broker_client.channel.declare_queue(broker_names.work_queue(there), durable=True)
    dead_queues = tuple(broker_names.dead_letter_queue(step) for step in (missing, there))
    async with start_worker_with_ingest(queues=dead_queues):
        for dead in dead_queues:
            await broker_client.publish(dead, {"a": 1}, exchange="")
        letters = [(await wait_for_dead_letters(repository, step=step))[0] for step in (missing, there)]
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id for letter in letters]), dry_run=False))
        await broker_client.take_message(target.name)

        async def returned() -> bool:
            return any(entry.kind == "not-sent" for entry in (await repository.get(letters[0].id)).history)

        await wait_until(returned)
        [letter] = await wait_for_dead_letters(repository, step=missing, state="unresolved")
    assert "no queue takes" in letter.history[-1].said["why"]


async def test_edited_dead_letter_is_published_under_new_id(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """The old letter becomes resolved; a copy that fails is a new letter that names the old one."""
    dead = broker_names.dead_letter_queue("upload")
    claim = {"uri": "file:///x", "sha256": "0" * 64, "media_type": "image/png", "size": 1}
    body = {"name": "n", "images": [claim]}
    async with start_worker_with_ingest(queues=(dead,)):
        message_id = await broker_client.publish(dead, b"{broken", exchange="", type="upload.v9")
        [letter] = await wait_for_dead_letters(repository, message_id=message_id)
        with pytest.raises(PermanentError, match="breaks the contract Upload") as error:
            await replay.edit(pool, EditDeadLetter(id=letter.id, body={"images": 5}, dry_run=False))
        assert error.value.code == "invalid-message"
        edited = await replay.edit(pool, EditDeadLetter(id=letter.id, body=body))
        assert (edited.dry_run, edited.contract, edited.message_id) == (True, "Upload", None)
        edited = await replay.edit(pool, EditDeadLetter(id=letter.id, body=body, dry_run=False))
        message = await broker_client.take_message(broker_names.work_queue("upload"))
        assert (message.message_id, json.loads(message.body), message.type) == (edited.message_id, body, "upload.v1")
        assert message.headers[Header.CAUSATION] == message_id
        await wait_for_dead_letters(repository, state="resolved", message_id=message_id)
        with pytest.raises(PermanentError, match="somebody has dealt with it"):
            await replay.edit(pool, EditDeadLetter(id=letter.id, body=body, dry_run=False))
        await broker_client.publish(dead, json.dumps(body).encode(), exchange="", message_id=edited.message_id)

        async def copy_is_stored() -> bool:
            return (await repository.find(Selection(message_id=edited.message_id), 5)).total == 2

        await wait_until(copy_is_stored)
        [copy] = await wait_for_dead_letters(repository, message_id=edited.message_id, state="unresolved")
    assert (copy.id != letter.id, copy.edited_from) == (True, letter.id)
