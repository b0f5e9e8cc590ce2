"""Reports of replays that one hostile message held up, lost or turned against another tenant: dead letters of real queues."""

import asyncio
from collections import Counter

import asyncpg
import pytest

from bus.amqp.raw_properties import RawProperties
from bus.dead_letters import replay, replay_message
from bus.dead_letters.repository import DeadLetterRepository
from contracts.dead_letter import ReplayDeadLetters, Selection
from contracts.wire import Header
from tests.reports.test_replays import dead_command, differences_of, send_again
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.dead_letter_fixtures import (
    FlakyHandler,
    StartWorkerWithIngest,
    queue_size,
    wait_for_dead_letters,
)
from tests.support.foreign_queue import BODY, ForeignQueue, values_of
from tests.support.hostile_messages import HostileMessage, encode_properties, entry, long, publish_all, short, table

pytestmark = pytest.mark.timeout(60)


async def new_queue(broker_client: BrokerClient, amqp_url: str) -> ForeignQueue:
    queue = ForeignQueue(broker_client, amqp_url)
    await queue.declare()
    return queue


def claim_of_death(queue: str, expiration: bytes) -> bytes:
    """Headers that a publisher writes: that the message expired in `queue`."""
    death = table(
        entry("queue", b"S" + long(queue.encode())),
        entry("reason", b"S" + long(b"expired")),
        entry("original-expiration", b"S" + long(expiration)),
    )
    return table(entry("x-death", b"A" + long(b"F" + death)), entry("x-first-death-queue", b"S" + long(queue.encode())))


async def replay_all(pool: asyncpg.Pool, ids: list[str]) -> int:
    """The id of the replay."""
    staged = await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=ids), dry_run=False))
    assert staged.replay_id
    return staged.replay_id


@pytest.mark.parametrize("expiration", [b"0" * 300, b"0" * 11 + b"9" * 20, "٣".encode(), b"-1"], ids=["long", "large", "digit", "negative"])
async def test_forged_expiration_is_not_sent(
    expiration: bytes,
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """rabbitmq/rabbitmq-server #161 is of an x-death that a publisher wrote. The broker closes the channel for such an expiration."""
    foreign = await new_queue(broker_client, amqp_url)
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        message = HostileMessage(
            "", encode_properties(headers=claim_of_death(foreign.name, expiration), message_id=short(b"m")), BODY, None
        )
        await asyncio.to_thread(publish_all, amqp_url, [message], foreign.dead)
        [letter] = await wait_for_dead_letters(repository, step=foreign.name)
        sent, body = await send_again(pool, letter, broker_client)
    assert (letter.target, body) == (foreign.name, BODY)
    assert "expiration" not in values_of(sent)


async def test_message_that_the_broker_refuses_does_not_hold_up_the_others(
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pardahlman/RawRabbit #400: the channel is closed for one message, and all that are under way fail. With one check of ours taken
    away, the one that is refused returns with the broker's reason; each of the others is sent, not again and again."""
    monkeypatch.setattr(replay_message, "MAX_EXPIRATION", 10**30)
    foreign = await new_queue(broker_client, amqp_url)
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        await foreign.die(encode_properties(message_id=short(b"before")))
        headers = claim_of_death(foreign.name, b"9" * 20)
        message = HostileMessage("", encode_properties(headers=headers, message_id=short(b"evil")), BODY, None)
        await asyncio.to_thread(publish_all, amqp_url, [message], foreign.dead)
        await wait_for_dead_letters(repository, 2, step=foreign.name)
        await foreign.die(encode_properties(message_id=short(b"after")))
        letters = {letter.message_id: letter for letter in await wait_for_dead_letters(repository, 3, step=foreign.name)}
        staged = await replay_all(pool, [letter.id for letter in letters.values()])

        async def done() -> bool:
            return bool(await pool.fetchval("select done_at is not null from atelier.dead_letter_replays where id = $1", staged))

        await wait_until(done, 40)
        states = {name: (await repository.get(letter.id)).state for name, letter in letters.items()}
        history = (await repository.get(letters["evil"].id)).history
    assert states == {"before": "replay-requested", "evil": "unresolved", "after": "replay-requested"}
    assert next(entry.said["why"] for entry in history if entry.kind == "not-sent").startswith("the broker refuses it")
    count = await queue_size(broker_client, foreign.name)
    sent = Counter([(await broker_client.take_message(foreign.name)).message_id for _ in range(count)])
    assert set(sent) == {"before", "after"}
    assert max(sent.values()) <= 2, "what was sent, but not confirmed before the channel closed, is sent once more"


async def test_equal_ids_in_two_queues_keep_their_own_outcome(
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """EasyNetQ/EasyNetQ #892: copies of one message die in two queues, of which one is gone. The client library would report the outcome
    of the one for the other, so that a message is lost."""
    first, gone = await new_queue(broker_client, amqp_url), await new_queue(broker_client, amqp_url)
    async with start_worker_with_ingest(foreign=(first.dead, gone.dead)):
        for queue in (first, gone):
            await queue.die(encode_properties(message_id=short(b"same")))
        [sound] = await wait_for_dead_letters(repository, step=first.name)
        [lost] = await wait_for_dead_letters(repository, step=gone.name)
        await (await broker_client.channel.get_queue(gone.name)).delete(if_empty=False, if_unused=False)
        await pool.execute("update atelier.dead_letters set last_failed_at = last_failed_at - interval '1 h' where id = $1", lost.id)
        await replay_all(pool, [sound.id, lost.id])  # that of the queue that is gone is the first

        async def sent() -> bool:
            return (await repository.get(sound.id)).forwarded_at is not None

        await wait_until(sent)
        assert await queue_size(broker_client, first.name) == 1
        assert [(await repository.get(letter.id)).state for letter in (sound, lost)] == ["replay-requested", "unresolved"]


async def test_dead_letter_that_cannot_be_sent_does_not_hide_the_others(
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """gmr/rejected #69 from the other side: rows of an earlier release, or imported ones, with texts that no message can have."""
    foreign = await new_queue(broker_client, amqp_url)
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        for name in (b"sound", b"long", b"large"):
            await foreign.die(encode_properties(message_id=short(name)))
        letters = {letter.message_id: letter for letter in await wait_for_dead_letters(repository, 3, step=foreign.name)}
        change = "update atelier.dead_letters set properties = null, type = $2, content_type = $3, headers = $4 where id = $1"
        await pool.execute(change, letters["long"].id, "주" * 100, "c" * 300, {"n" * 300: 1, "theirs": 1})
        await pool.execute(change, letters["large"].id, "t", None, {"text": "x" * 140_000})
        result = await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id for letter in letters.values()])))
        sent, _ = await send_again(pool, letters["long"], broker_client)
    differences = {one.name: (one.change, one.reason) for one in result.differences}
    assert (result.compared, result.letters) == (3, 3)
    assert differences["message"] == ("left out", "it cannot be sent: properties-too-large")
    assert differences["message_type"] == differences["content_type"] == ("left out", "the protocol allows 255 bytes")
    assert values_of(sent).keys() == {"message_id", "correlation_id", "delivery_mode", "header theirs", f"header {Header.REPLAY.value}"}


@pytest.mark.parametrize("origin", [False, True], ids=["header alone", "with an origin"])
async def test_publisher_does_not_replace_the_properties_of_its_dead_letter(
    origin: bool,
    start_worker: StartWorker,
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """EasyNetQ/EasyNetQ #1121: a header of the publisher decides about a replay. Here it would act for another tenant than the one that
    the operator sees."""
    forged = encode_properties(
        message_id=short(b"m"), correlation_id=short(b"j"), headers=table(entry(Header.TENANT.value, b"S" + long(b"victim")))
    )
    headers = table(
        entry(Header.TENANT.value, b"S" + long(b"shop")),
        entry(Header.ORIGINAL_PROPERTIES.value, b"x" + long(forged)),
        *([entry(Header.ORIGIN_QUEUE.value, b"S" + long(b"atelier.image"))] if origin else []),
    )
    properties = encode_properties(
        message_id=short(b"m"), correlation_id=short(b"j"), type=short(b"theirs"), app_id=short(b"real"), headers=headers
    )
    async with dead_command(properties, FlakyHandler(), start_worker, start_worker_with_ingest, broker_client, amqp_url) as step:
        [letter] = await wait_for_dead_letters(repository, step=step)
        sent, _ = await send_again(pool, letter, broker_client)
    values = values_of(sent)
    assert letter.tenant == "shop"
    assert (values[f"header {Header.TENANT.value}"], values["app_id"]) == (b"S" + long(b"shop"), short(b"real"))
    assert f"header {Header.ORIGINAL_PROPERTIES.value}" not in values


async def test_replay_never_acts_for_a_tenant_that_is_not_stored(
    start_worker: StartWorker,
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """Whatever put other properties beside the row, such as an import: it is shown, and the dead letter returns unsent."""
    properties = encode_properties(
        message_id=short(b"m"), type=short(b"theirs"), headers=table(entry(Header.TENANT.value, b"S" + long(b"shop")))
    )
    async with dead_command(properties, FlakyHandler(), start_worker, start_worker_with_ingest, broker_client, amqp_url) as step:
        [letter] = await wait_for_dead_letters(repository, step=step)
        for other in (RawProperties.parse(properties).with_headers({Header.TENANT.value: "victim"}), RawProperties({})):
            await pool.execute("update atelier.dead_letters set properties = $2 where id = $1", letter.id, other.encode())
            assert (await differences_of(pool, letter)).keys() == {"message"}
            await replay_all(pool, [letter.id])

            async def returned() -> bool:
                return (await repository.get(letter.id)).history[-1].kind == "not-sent"

            await wait_until(returned)
        assert letter.target is not None
        assert await queue_size(broker_client, letter.target) == 0
