"""Reports of replays that were not what died: what is sent again equals it, byte by byte of each value; what cannot is shown before."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from actors.adapters.image_generation import build_adapter
from actors.dead_letters import ACTORS
from bus.amqp.raw_properties import RawProperties
from bus.amqp.tolerant_decoding import encoded_properties
from bus.dead_letters import jsonl, replay
from bus.dead_letters.repository import DeadLetterRepository
from bus.errors import TemporaryError
from bus.settings import BusSettings
from contracts import broker_names
from contracts.dead_letter import EditDeadLetter, ReplayDeadLetters, Selection, WholeDeadLetter
from contracts.wire import Header
from ops.commands.dead_letter_output import format_letter, format_replayed
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor, wait_until
from tests.support.dead_letter_fixtures import (
    FlakyHandler,
    StartWorkerWithIngest,
    queue_size,
    wait_for_dead_letters,
)
from tests.support.foreign_queue import BODY, PROPERTIES, TYPED_HEADERS, ForeignQueue, values_of
from tests.support.gateway_app import open_gateway
from tests.support.hostile_messages import HostileMessage as Message
from tests.support.hostile_messages import encode_properties, entry, long, publish_all, short, table

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def foreign(broker_client: BrokerClient, amqp_url: str) -> ForeignQueue:
    queue = ForeignQueue(broker_client, amqp_url)
    await queue.declare()
    return queue


async def send_again(
    pool: asyncpg.Pool, letter: WholeDeadLetter, broker_client: BrokerClient, **options: Any
) -> tuple[RawProperties, bytes]:
    """Replay one dead letter; the properties and the body of what arrives in its queue."""
    assert letter.target is not None
    await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id]), dry_run=False, **options))
    message = await broker_client.take_message(letter.target)
    encoded = encoded_properties(message.headers)
    assert encoded is not None
    return RawProperties.parse(encoded), message.body


async def differences_of(pool: asyncpg.Pool, letter: WholeDeadLetter, **options: Any) -> dict[str, tuple[str, str | None, str | None]]:
    """What a dry run shows: name to change, value that died and value that is sent."""
    request = ReplayDeadLetters(selection=Selection(ids=[letter.id]), **options)
    return {one.name: (one.change, one.died, one.sent) for one in (await replay.stage(pool, request)).differences}


async def test_replay_equals_what_died(
    start_worker_with_ingest: StartWorkerWithIngest, foreign: ForeignQueue, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """gmr/rejected #69, swarrot/swarrot #81, spring-projects/spring-amqp #632, rabbitmq/rabbitmq-server #10037: properties are dropped or
    replaced, the delivery mode changes, numbers lose their sign or their type. Here every value has the bytes that it died with. The
    broker took the expiration off; it is put back."""
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        died = await foreign.die(encode_properties(**PROPERTIES, message_id=short(b"m-1")))
        [letter] = await wait_for_dead_letters(repository, step=foreign.name)
        shown = await differences_of(pool, letter)
        sent, body = await send_again(pool, letter, foreign.broker_client)
    changed = {name: value for name, value in values_of(sent).items() if values_of(died).get(name) != value}
    assert changed == {f"header {Header.REPLAY.value}": b"b\x01"}
    assert values_of(died).keys() <= values_of(sent).keys()
    assert body == BODY
    broker_headers = {f"header x-first-death-{what}" for what in ("queue", "reason", "exchange")} | {"header x-death"}
    assert shown.keys() == {"expiration", *broker_headers, f"header {Header.REPLAY.value}"}
    assert shown["expiration"] == ("added", None, "3600000")


async def test_absent_property_stays_absent(
    start_worker_with_ingest: StartWorkerWithIngest, foreign: ForeignQueue, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """EasyNetQ/EasyNetQ #754: a message is inserted again with blank properties. Only a missing id is added, that of the letter."""
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        for missing in [*PROPERTIES, "everything"]:
            properties = {} if missing == "everything" else {name: value for name, value in PROPERTIES.items() if name != missing}
            died = await foreign.die(encode_properties(**properties), missing.encode())
            [letter] = [
                each for each in await wait_for_dead_letters(repository, step=foreign.name, state="unresolved") if each.body == missing
            ]
            shown = await differences_of(pool, letter)
            sent, _ = await send_again(pool, letter, foreign.broker_client)
            added = {name for name in values_of(sent) if name not in values_of(died)}
            assert added == {"message_id", f"header {Header.REPLAY.value}"}, missing
            assert sent.text("message_id") == letter.message_id
            assert shown["message_id"] == ("added", None, letter.message_id)


async def test_unavoidable_differences_are_shown_before(
    start_worker_with_ingest: StartWorkerWithIngest, foreign: ForeignQueue, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """qkaiser/cottontail #17, pardahlman/RawRabbit #400: the broker closes the channel of whoever sends another user's name.
    cloudamqp/lavinmq #1990: the keys in CC would receive copies. rabbitmq/rabbitmq-server #161, #767 and #12731: an old x-death crashes a
    queue or becomes a wrong one. Each is left out, and the dry run says so; nothing is sent to the keys."""
    bystander = await foreign.broker_client.channel.declare_queue(exclusive=True)
    headers = table(entry("CC", b"A" + long(b"S" + long(bystander.name.encode()))), entry("cc", b"V"))
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        await foreign.die(
            encode_properties(headers=headers, user_id=short(foreign.user), reply_to=short(b"their.replies"), message_id=short(b"m"))
        )
        assert await queue_size(foreign.broker_client, bystander.name) == 1
        [letter] = await wait_for_dead_letters(repository, step=foreign.name)
        shown = await differences_of(pool, letter)
        sent, _ = await send_again(pool, letter, foreign.broker_client)
    left_out = {name for name, (change, _, _) in shown.items() if change == "left out"}
    assert {"user_id", "header CC", "header x-death", "header x-first-death-queue"} <= left_out
    assert shown["user_id"] == ("left out", foreign.user.decode(), None)
    assert values_of(sent).keys() == {"message_id", "reply_to", "header cc", f"header {Header.REPLAY.value}"}
    assert await queue_size(foreign.broker_client, bystander.name) == 1


async def test_message_that_no_worker_can_decode_goes_back_to_its_system_as_it_was(
    start_worker_with_ingest: StartWorkerWithIngest, foreign: ForeignQueue, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """cloudamqp/amqproxy #57, pika/pika #769: a time in microseconds and binary ids are values for the system that wrote them."""
    bad = {"timestamp": struct.pack(">Q", 1_790_000_000_000_000), "correlation_id": short(b"\xfe\xff\x00\x81"), "message_id": short(b"m-1")}
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        await asyncio.to_thread(publish_all, foreign._url, [Message("", encode_properties(**bad), BODY, None)], foreign.dead)
        [letter] = await wait_for_dead_letters(repository, step=foreign.dead)
        assert (letter.code, letter.message_id, letter.target) == ("undecodable-properties", "m-1", None)
        await pool.execute("update atelier.dead_letters set target = $2 where id = $1", letter.id, foreign.name)
        sent, _ = await send_again(pool, await repository.get(letter.id), foreign.broker_client)
    assert {name: value for name, value in values_of(sent).items() if name in bad} == bad


@asynccontextmanager
async def dead_command(
    properties: bytes, handler: Any, start_worker: StartWorker, start_with_ingest: StartWorkerWithIngest, client: BrokerClient, url: str
) -> AsyncIterator[str]:
    """A command that dies in a worker, and an ingest of its dead letter; yields its step, whose queue nobody consumes any more."""
    actor = echo_actor(handler)
    async with start_worker(actor):
        failed = await client.subscribe_events(f"{actor.step}.failed.#")
        await asyncio.to_thread(publish_all, url, [Message("", properties, b'{"text": "x"}', None)], actor.queue)
        await asyncio.wait_for(failed.get(), 10)
    async with start_with_ingest(queues=(broker_names.dead_letter_queue(actor.step),)):
        yield actor.step


async def fail_for_a_while(command: Echo, context: Any) -> Echoed:
    raise TemporaryError("the disk is full")


@pytest.mark.parametrize("handler", [FlakyHandler(), fail_for_a_while], ids=["at once", "after retries"])
async def test_replayed_command_equals_what_died(
    handler: Any,
    start_worker: StartWorker,
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """celery/kombu #2354 seen from the other side: a worker's own dead letter keeps the publisher's headers too, also over its retries.
    EasyNetQ/EasyNetQ #892: it goes to the queue that failed alone."""
    headers = TYPED_HEADERS[4:] + entry(Header.DEADLINE.value, b"S" + long(b"2099-01-01T00:00:00+00:00"))
    properties = encode_properties(
        **PROPERTIES | {"headers": long(headers), "type": short(b"theirs"), "message_id": short(b"m"), "reply_to": short(b"amq.gen-x")}
    )
    async with dead_command(properties, handler, start_worker, start_worker_with_ingest, broker_client, amqp_url) as step:
        [letter] = await wait_for_dead_letters(repository, step=step)
        shown = await differences_of(pool, letter)
        sent, body = await send_again(pool, letter, broker_client)
    died, now = values_of(RawProperties.parse(properties)), values_of(sent)
    assert body == b'{"text": "x"}'
    assert {name for name in died.keys() | now.keys() if died.get(name) != now.get(name)} == shown.keys()
    assert shown.keys() == {"expiration", "reply_to", f"header {Header.DEADLINE.value}", f"header {Header.REPLAY.value}"}


async def test_replayed_order_equals_what_died(
    start_worker: StartWorker,
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """Of another system in the queue that an adapter consumes, with the ids that its publisher chose, and those that it did not."""
    queue, number = broker_names.IMAGE_GENERATION_QUEUE, uuid4().int % 10**9
    body = json.dumps({"type": "image_generation", "data": {"generation_id": number}}).encode()
    properties = encode_properties(**PROPERTIES | {"headers": TYPED_HEADERS}, message_id=short(b"their-id"), reply_to=short(b"theirs"))
    async with start_worker(adapters=[build_adapter()]):
        dead = await broker_client.channel.get_queue(broker_names.dead_letter_queue(queue))
        await asyncio.to_thread(publish_all, amqp_url, [Message("", properties, body, None)], queue)

        async def is_dead() -> bool:
            return await queue_size(broker_client, dead.name) == 1

        await wait_until(is_dead)
    async with start_worker_with_ingest(queues=(dead.name,)):
        [letter] = await wait_for_dead_letters(repository, step=queue, job_id=f"generation-{number}")
        shown = await differences_of(pool, letter)
        sent, again = await send_again(pool, letter, broker_client)
    died, now = values_of(RawProperties.parse(properties)), values_of(sent)
    assert (letter.message_id, letter.target, again) == ("their-id", queue, body)
    assert {name for name in died.keys() | now.keys() if died.get(name) != now.get(name)} == shown.keys()
    assert shown.keys() == {"expiration", f"header {Header.REPLAY.value}"}


async def test_undecodable_command_is_sent_again_without_what_cannot_be_decoded(
    start_worker: StartWorker,
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """mosquito/aiormq #186: sent again with its timestamp, it would fail again. Each property that is left out is shown."""
    actor, properties = echo_actor(FlakyHandler()), {"timestamp": struct.pack(">Q", 2**60), "app_id": short(b"shop")}
    async with start_worker(actor):
        await asyncio.to_thread(publish_all, amqp_url, [Message("", encode_properties(**properties), b'{"text": "x"}', None)], actor.queue)
    async with start_worker_with_ingest(queues=(broker_names.dead_letter_queue(actor.step),)):
        [letter] = await wait_for_dead_letters(repository, step=actor.step)
        shown = await differences_of(pool, letter)
        sent, body = await send_again(pool, letter, broker_client)
    assert (letter.code, body) == ("undecodable-properties", b'{"text": "x"}')
    assert {name: change for name, (change, _, _) in shown.items()} == {
        "timestamp": "left out", "app_id": "left out", "message_id": "added", f"header {Header.REPLAY.value}": "added",
    }  # fmt: skip
    assert shown["timestamp"][1] == str(2**60)
    assert values_of(sent).keys() == {"message_id", f"header {Header.REPLAY.value}"}


async def test_second_failure_of_a_replay_is_the_same_letter_and_equals_the_first(
    start_worker_with_ingest: StartWorkerWithIngest, foreign: ForeignQueue, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """gessnerfl/rabbitmq-queue-management #8: it must be visible that a message was sent again and came back. A header counts it."""
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        died = await foreign.die(encode_properties(**PROPERTIES))
        [letter] = await wait_for_dead_letters(repository, step=foreign.name)
        first, _ = await send_again(pool, letter, foreign.broker_client)
        await foreign.die(first.encode())
        [again] = await wait_for_dead_letters(repository, step=foreign.name, state="failed-again")
        second, _ = await send_again(pool, again, foreign.broker_client)
    assert (again.id, again.failures) == (letter.id, 2)
    counted = f"header {Header.REPLAY.value}"
    assert (values_of(first)[counted], values_of(second)[counted]) == (b"b\x01", b"b\x02")
    assert {name: value for name, value in values_of(second).items() if name in values_of(died)} == values_of(died)


async def test_export_and_import_keep_every_value(
    start_worker_with_ingest: StartWorkerWithIngest, foreign: ForeignQueue, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """JSON lines hold the encoded properties. A line of an earlier release, which has none, is read as well."""
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        died = await foreign.die(encode_properties(**PROPERTIES, message_id=short(b"m")))
        [letter] = await wait_for_dead_letters(repository, step=foreign.name)
        [line] = [line async for line in jsonl.export_lines(pool, Selection(ids=[letter.id]))]
        earlier = {name: value for name, value in json.loads(line).items() if name != "properties"}
        for exported in (earlier, json.loads(line)):
            await pool.execute("delete from atelier.dead_letters where id = $1", letter.id)
            assert await jsonl.import_lines(pool, [json.dumps(exported)], dry_run=False) == 1
        assert (await repository.get(letter.id)).properties == letter.properties
        sent, body = await send_again(pool, letter, foreign.broker_client)
    assert body == BODY
    assert {name: value for name, value in values_of(sent).items() if name in values_of(died)} == values_of(died)
    assert base64.b64decode(json.loads(line)["properties"])


@pytest.mark.parametrize("queue", ["ours", "foreign"])
async def test_publisher_does_not_choose_the_queue_of_a_replay(
    queue: str, start_worker_with_ingest: StartWorkerWithIngest, foreign: ForeignQueue, repository: DeadLetterRepository
) -> None:
    """EasyNetQ/EasyNetQ #1121: a replay goes to the queue that failed. A header of the publisher does not change which one that is."""
    ours = broker_names.dead_letter_queue(f"step-{uuid4().hex[:6]}")
    claims = table(
        entry(Header.ORIGIN_QUEUE.value, b"S" + long(b"atelier.webhook")),
        entry("x-first-death-queue", b"S" + long(b"atelier.webhook")),
        entry(
            "x-death", b"A" + long(b"F" + table(entry("queue", b"S" + long(b"atelier.webhook")), entry("reason", b"S" + long(b"expired"))))
        ),
    )
    async with start_worker_with_ingest(foreign=(foreign.dead,), queues=(ours,)):
        if queue == "ours":
            await asyncio.to_thread(publish_all, foreign._url, [Message("", encode_properties(headers=claims), BODY, None)], ours)
            [letter] = await wait_for_dead_letters(repository, step=ours.removeprefix("atelier.dead."))
            assert letter.target == f"atelier.{letter.step}"
        else:
            await foreign.die(encode_properties(headers=claims))
            [letter] = await wait_for_dead_letters(repository, step=foreign.name)
            assert letter.target == foreign.name


async def test_values_and_differences_are_shown_in_every_interface(
    start_worker_with_ingest: StartWorkerWithIngest,
    foreign: ForeignQueue,
    repository: DeadLetterRepository,
    bus_settings: BusSettings,
    store_folder: Path,
    pool: asyncpg.Pool,
) -> None:
    """The command line, HTTP and the console: a dry run names what differs, and a dead letter's page the types of its values."""
    async with (
        start_worker_with_ingest(*ACTORS[1:], foreign=(foreign.dead,)),
        open_gateway(bus_settings, store_folder) as http,
    ):
        await foreign.die(encode_properties(**PROPERTIES, user_id=short(foreign.user)))
        [letter] = await wait_for_dead_letters(repository, step=foreign.name)
        selection = {"ids": [letter.id]}
        dry = (await http.post("/dead-letters/replay", json={"selection": selection})).json()
        stored = (await http.get(f"/dead-letters/{letter.id}")).json()
        page = (await http.get(f"/console/dead-letters/{letter.id}")).text
        [token] = {part.split('"')[0] for part in page.split('name="csrf" value="')[1:]}
        form = {"csrf": token, "action": "replay", "id": letter.id}
        preview = (await http.post("/console/dead-letters/preview", data=form)).text
        staged = await replay.stage(pool, ReplayDeadLetters(selection=Selection(ids=[letter.id])))
    shown = {one["name"]: one for one in dry["differences"]}
    assert (shown["user_id"]["change"], shown["user_id"]["died"], dry["compared"]) == ("left out", foreign.user.decode(), 1)
    assert dry["targets"] == {foreign.name: 1}
    assert {"name": "header price", "type": "double", "value": "0.30000000000000004"} in stored["properties"]
    assert {"name": "header bytes", "type": "bytes", "value": "00ff" * 8} in stored["properties"]
    assert "header price" in page
    assert "0.30000000000000004" in page
    assert "user_id" in preview
    assert "the broker takes no name but that of the user who sends the replay" in preview
    assert "user_id is left out in 1 letter: the broker" in format_replayed(staged, None)
    assert "header sent-at: timestamp 1790000000" in format_letter(letter)


async def test_edited_message_shows_what_else_changes(
    start_worker_with_ingest: StartWorkerWithIngest, foreign: ForeignQueue, repository: DeadLetterRepository, pool: asyncpg.Pool
) -> None:
    """An edited body is JSON, so that the type and the encoding of the old one do not fit it. The headers stay."""
    async with start_worker_with_ingest(foreign=(foreign.dead,)):
        await foreign.die(encode_properties(**PROPERTIES, message_id=short(b"m")))
        [letter] = await wait_for_dead_letters(repository, step=foreign.name)
        dry = await replay.edit(pool, EditDeadLetter(id=letter.id, body={"a": 1}))
        await replay.edit(pool, EditDeadLetter(id=letter.id, body={"a": 1}, dry_run=False))
        message = await foreign.broker_client.take_message(foreign.name)
    changes = {one.name: one.change for one in dry.differences}
    assert {name: changes[name] for name in ("content_type", "content_encoding", "message_id")} == {
        "content_type": "changed", "content_encoding": "left out", "message_id": "changed",
    }  # fmt: skip
    assert (message.content_type, message.body, message.headers["x-theirs"]) == (
        "application/json",
        b'{"a": 1}',
        "a header of the publisher",
    )
