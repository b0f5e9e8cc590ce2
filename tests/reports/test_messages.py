"""Reports of messages that stopped a consumer: each ends alone, its cause is kept, and what else the process consumes never notices.

A row of CASES is one report: what its publisher set, and whether the client library can decode it. Each case is tried on every kind of
queue that a process consumes.
"""

import asyncio
import json
import struct
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractIncomingMessage

from actors.adapters.image_generation import build_adapter
from bus.actor import Actor, Context
from bus.amqp.discovery import discover_workers
from bus.amqp.messages import build_cancel
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import ReplyFault, open_request_client
from bus.amqp.subscriptions import subscribe_events
from bus.dead_letters.repository import DeadLetterRepository
from bus.settings import BusSettings
from bus.worker.outgoing import read_slip
from contracts import broker_names
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor, wait_until
from tests.support.dead_letter_fixtures import (
    StartWorkerWithIngest,
    wait_for_dead_letters,
)
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.hostile_messages import UNDECODABLE, HostileMessage, encode_properties, entry, long, nested, publish_all, short, table

pytestmark = pytest.mark.timeout(60)

SECONDS = 5.0
"""Within which a sound message is done and an unsound one is dead-lettered."""


def timestamp(value: int) -> bytes:
    return encode_properties(timestamp=struct.pack(">Q", value))


def header(field: bytes) -> bytes:
    return encode_properties(headers=table(entry("h", field)))


CASES: dict[str, tuple[bytes, bool]] = {
    # The timestamp is in microseconds, which is a year after 9999: the reader raises, and every consumer is lost.
    "mosquito/aiormq #186": (timestamp(1_790_000_000_000_000), False),
    "pika/pika #98": (timestamp(1_411_581_443_000_000), False),
    # A timestamp of all ones: the reconnecting consumer gets the same message again, for ever.
    "pika/pika #1698": (timestamp(2**64 - 1), False),
    # A timestamp in milliseconds, and one whose highest bit is set.
    "cloudamqp/amqproxy #57, milliseconds": (timestamp(1_790_000_000_000), True),
    "cloudamqp/amqproxy #57, negative": (timestamp(2**63 + 7), False),
    # The correlation id is the 16 bytes of a UUID, which are not UTF-8.
    "pika/pika #769": (encode_properties(correlation_id=short(b"\xfe\xff\x00\x81" + bytes(12))), False),
    # A name or a value that is not UTF-8; a worker with such a message in its queue cannot start.
    "gmr/pamqp #32": (encode_properties(headers=table(entry(b"caf\xe9", b"S" + long(b"caf\xe9")))), False),
    "celery/celery #2873": (encode_properties(message_id=short(b"\xf5\xa9"), content_type=short(b"application/json")), False),
    # 128 as a signed short integer, whose type one library reads as the length of a text: the rest of the table is shifted.
    "celery/kombu #2354": (header(b"s\x00\x80"), True),
    # An unsigned octet, an array, a signed octet, a double, a byte array, an unsigned integer: unknown types for some reader each.
    "rabbitmq/rabbitmq-java-client #713": (header(b"B\xff"), True),
    "postwait/node-amqp #83": (header(b"A" + long(b"S" + long(b"x") + b"V")), True),
    "postwait/node-amqp #331": (header(b"b\x80"), True),
    "php-amqplib/php-amqplib #924": (header(b"d" + struct.pack(">d", 1.1)), True),
    "gmr/rabbitpy #48": (header(b"x" + long(b"\x00\xff")), True),
    "rabbitmq/rabbitmq-server #20": (header(b"i\xff\xff\xff\xff"), True),
    # Tables in tables, deeper than the reader calls itself.
    "nesting": (header(nested(b"F", 4000)), False),
    # Properties that the protocol allows and nobody expects.
    "priority and cluster id": (encode_properties(priority=b"\xff", cluster_id=short(b"c")), True),
    "encodings": (encode_properties(content_type=short(b"application/json; charset=utf-16"), content_encoding=short(b"gzip")), True),
    "headers of 100 kB": (header(b"S" + long(b"x" * 100_000)), False),
    "a name twice": (encode_properties(headers=table(entry("h", b"t\x01"), entry("h", b"V"))), True),
}


def unsound_messages(code: str = "invalid-json") -> list[HostileMessage]:
    """Their bodies are no JSON. `code`: under which the decodable ones are dead-lettered."""
    cases = enumerate(CASES.items())
    return [HostileMessage(name, raw, b"{%d" % number, code if fine else UNDECODABLE) for number, (name, (raw, fine)) in cases]


async def echo(command: Echo, context: Context) -> Echoed:
    return Echoed(text=command.text)


async def expect_echo(broker_client: BrokerClient, actor: Actor, text: str = "sound") -> None:
    await broker_client.publish(actor.step, {"text": text}, reply_to=broker_client.reply_queue)
    assert await broker_client.next_reply(SECONDS) == (f"{actor.step}.done.v1", {"text": text})


async def collect_dead_letters(broker_client: BrokerClient, name: str) -> dict[bytes, Any]:
    """The codes of the dead letters of a step or an adapter, by body; filled from now on."""
    codes: dict[bytes, Any] = {}

    async def on_dead_letter(message: AbstractIncomingMessage) -> None:
        assert message.headers[Header.FAULT_MESSAGE]
        codes[message.body] = message.headers[Header.FAULT_CODE]

    queue = await broker_client.channel.get_queue(broker_names.dead_letter_queue(name))
    await queue.consume(on_dead_letter, no_ack=True)
    return codes


async def expect_codes(codes: dict[bytes, Any], messages: list[HostileMessage]) -> None:
    async def all_ended() -> bool:
        return len(codes) >= len(messages)

    await wait_until(all_ended, SECONDS)
    assert codes == {message.body: message.cause for message in messages}


async def test_unsound_command_is_dead_lettered_alone(start_worker: StartWorker, broker_client: BrokerClient, amqp_url: str) -> None:
    """The sound command behind them is done once; the other queue of the process is served meanwhile."""
    done: list[str] = []

    async def record(command: Echo, context: Context) -> Echoed:
        done.append(command.text)
        return Echoed(text=command.text)

    actor, neighbour, messages = echo_actor(record), echo_actor(echo), unsound_messages()
    async with start_worker(actor, neighbour):
        codes = await collect_dead_letters(broker_client, actor.step)
        await asyncio.to_thread(publish_all, amqp_url, messages, actor.queue)
        await expect_echo(broker_client, neighbour)
        await expect_echo(broker_client, actor)
        await expect_codes(codes, messages)
    assert done == ["sound"]


async def test_unsound_order_is_dead_lettered_alone(start_worker: StartWorker, broker_client: BrokerClient, amqp_url: str) -> None:
    """The same for the foreign queue and its adapter."""
    messages, neighbour = unsound_messages(), echo_actor(echo)
    async with start_worker(FAKE_IMAGE_ACTOR, neighbour, adapters=[build_adapter()]):
        accepted = await broker_client.subscribe_events("job.accepted.#")
        codes = await collect_dead_letters(broker_client, "image_generation")
        await asyncio.to_thread(publish_all, amqp_url, messages, broker_names.IMAGE_GENERATION_QUEUE)
        await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, order(), exchange="")
        await asyncio.wait_for(accepted.get(), SECONDS)
        await expect_echo(broker_client, neighbour)
        await expect_codes(codes, messages)
    assert accepted.empty()


def order() -> dict[str, Any]:
    return {"type": "image_generation", "data": {"generation_id": uuid4().int % 10**9, "prompt": "harbour", "aspect_ratio": "1:1"}}


async def test_unsound_event_is_dead_lettered_alone(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, amqp_url: str
) -> None:
    """The queue of the actor `dead-letters`, which listens to events, in the process of the ingest; through the exchange of events."""
    neighbour = echo_actor(echo)
    messages = unsound_messages()
    async with start_worker_with_ingest(neighbour):
        codes = await collect_dead_letters(broker_client, "dead-letters")
        await asyncio.to_thread(publish_all, amqp_url, messages, "image.completed.job", broker_names.EVENTS_EXCHANGE)
        await expect_echo(broker_client, neighbour)
        await expect_codes(codes, messages)
    assert len(codes) == len(messages) > 0


async def test_unsound_dead_letter_is_stored_and_sound_one_once(
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    amqp_url: str,
) -> None:
    """In a dead-letter queue of another system, between two sound ones. The ingest goes on, and nothing is stored twice."""
    dead = f"orders-dlq-{uuid4().hex[:6]}"
    await broker_client.channel.declare_queue(dead, durable=True)
    messages = unsound_messages()
    async with start_worker_with_ingest(foreign=(dead,)):
        await broker_client.publish(dead, b"sound 1", exchange="")
        await asyncio.to_thread(publish_all, amqp_url, messages, dead)
        await broker_client.publish(dead, b"sound 2", exchange="")
        letters = await wait_for_dead_letters(repository, len(messages) + 2, step=dead)
    assert Counter(str(letter.body) for letter in letters) == Counter(
        ["sound 1", "sound 2", *(str(each.body, "utf-8") for each in messages)]
    )
    assert {letter.failures for letter in letters} == {1}
    codes = {letter.body: letter.code for letter in letters}
    assert {each.name: codes[str(each.body, "utf-8")] for each in messages if each.cause == UNDECODABLE} == {
        name: UNDECODABLE for name, (_, decodable) in CASES.items() if not decodable
    }


async def test_unsound_reply_ends_no_other_request(
    start_worker: StartWorker, bus_settings: BusSettings, amqp_url: str, broker_client: BrokerClient
) -> None:
    """golevelup/nestjs #551: unexpected messages among the replies, and no request is answered any more. Here in a reply queue."""
    actor = echo_actor(echo)
    async with start_worker(actor), open_publisher(bus_settings) as publisher, open_request_client(publisher) as client:
        await asyncio.to_thread(publish_all, amqp_url, unsound_messages(), client.reply_queue)
        assert await client.request(actor.step, {"text": "sound"}, seconds=SECONDS) == {"text": "sound"}


async def test_unsound_broadcast_stops_no_process(
    start_worker: StartWorker, bus_settings: BusSettings, broker_client: BrokerClient, amqp_url: str
) -> None:
    """On the exchanges of control messages and of events, which reach every process; also with a routing key that is not UTF-8."""
    started = asyncio.Event()

    async def wait(command: Echo, context: Context) -> Echoed:
        started.set()
        await asyncio.sleep(30)
        return Echoed(text=command.text)

    actor, messages = echo_actor(wait, timeout_seconds=40), unsound_messages()
    async with start_worker(actor), open_publisher(bus_settings) as publisher, subscribe_events(publisher, "#") as events:
        for key in (b"", b"\xff\xfe"):
            await asyncio.to_thread(publish_all, amqp_url, messages, key, broker_names.CONTROL_EXCHANGE)
            await asyncio.to_thread(publish_all, amqp_url, messages, b"a.b." + key, broker_names.EVENTS_EXCHANGE)
        assert actor.step in [step.step for worker in await discover_workers(publisher, SECONDS) for step in worker.steps]
        await broker_client.publish(actor.step, {"text": "sound"}, correlation_id="to-cancel", reply_to=broker_client.reply_queue)
        await asyncio.wait_for(started.wait(), SECONDS)
        await publisher.publish(build_cancel("to-cancel"))
        assert (await broker_client.next_reply(SECONDS))[1]["code"] == "cancelled"
        async with asyncio.timeout(SECONDS):
            while (await events.get()).job_id != "to-cancel":
                pass


BOM = b"\xef\xbb\xbf"


async def answer(broker_client: BrokerClient, step: str, body: bytes) -> Any:
    await broker_client.publish(step, body, reply_to=broker_client.reply_queue)
    return (await broker_client.next_reply(SECONDS))[1]


async def accept(broker_client: BrokerClient, body: bytes) -> bool:
    accepted = await broker_client.subscribe_events("job.*.#")
    await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, body, exchange="")
    async with asyncio.timeout(SECONDS):
        return str((await accepted.get())["kind"]) == "accepted"


@pytest.mark.parametrize(("prefix", "taken"), [(BOM, True), (b"\xff\xfe", False)], ids=["of UTF-8", "of UTF-16"])
async def test_byte_order_mark_is_accepted_alike(
    prefix: bytes, taken: bool, start_worker: StartWorker, broker_client: BrokerClient
) -> None:
    """MassTransit/MassTransit #3048, Particular/NServiceBus #3050: .NET writers put a byte order mark before JSON. One is left out."""
    actor = echo_actor(echo)
    async with start_worker(actor, FAKE_IMAGE_ACTOR, adapters=[build_adapter()]):
        result = await answer(broker_client, actor.step, prefix + b'{"text": "sound"}')
        assert result == {"text": "sound"} if taken else result["code"] == "invalid-json"
        assert await accept(broker_client, prefix + json.dumps(order()).encode()) is taken


ODD_BODIES: dict[str, bytes] = {
    # No body at all; bytes of a picture; an array, a number; UTF-16; compressed JSON; numbers without an end.
    "empty": b"", "picture": b"\x89PNG\r\n\x1a\n", "array": b"[]", "number": b"1e999", "utf-16": '{"text": "x"}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00", "digits": b'{"text": ' + b"9" * 100_000 + b"}", "depth": b"[" * 100_000, "null": b"null",
}  # fmt: skip


async def test_odd_body_is_dead_lettered_and_answered(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """nestjs/nest #7196 and #2299, golevelup/nestjs #137, DamirDenis-Tudor/ktor-server-rabbitmq #25, celery/celery #2039: a body that is
    not what the consumer expects crashes it, or returns to its queue for ever. Here it is an error of that message alone."""
    actor = echo_actor(echo)
    async with start_worker(actor):
        codes = await collect_dead_letters(broker_client, actor.step)
        for body in ODD_BODIES.values():
            await broker_client.publish(actor.step, body, content_encoding="gzip", content_type="application/json; charset=utf-16")
        await expect_echo(broker_client, actor)

        async def all_ended() -> bool:
            return codes.keys() == set(ODD_BODIES.values())

        await wait_until(all_ended, SECONDS)
    assert set(codes.values()) <= {"invalid-json", "invalid-message"}


HUGE = b'{"slip": {"on_failure": {"step": "webhook"}}, "text": [' + b"1," * 9_000_000 + b"1]}"
"""18 MB, which take seconds to parse, in which the process would do nothing else."""


async def test_huge_body_is_dead_lettered_unread(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """rabbitmq/rabbitmq-java-client #1221: a message over the client's limit is delivered again for ever, and nothing else is consumed."""
    actor = echo_actor(echo)
    async with start_worker(actor, FAKE_IMAGE_ACTOR, adapters=[build_adapter()]):
        codes = {name: await collect_dead_letters(broker_client, name) for name in (actor.step, "image_generation")}
        await broker_client.publish(actor.step, HUGE)
        await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, HUGE, exchange="")
        await expect_echo(broker_client, actor)

        async def all_ended() -> bool:
            return all(codes.values())

        await wait_until(all_ended, 2 * SECONDS)
    assert {name: [*found.values()] for name, found in codes.items()} == {
        actor.step: ["message-too-large"],
        "image_generation": ["message-too-large"],
    }
    assert read_slip(HUGE) is None, "it is not parsed for its slip either"


async def test_reply_that_is_no_json_or_huge_ends_no_other_request(bus_settings: BusSettings, broker_client: BrokerClient) -> None:
    """nestjs/nest #12162: a reply that is no JSON freezes the requester. Its request has a fault; one that is too large is skipped."""
    async with open_publisher(bus_settings) as publisher, open_request_client(publisher) as client:
        with client.expect_reply("broken") as broken, client.expect_reply("sound") as sound:
            await broker_client.publish(client.reply_queue, HUGE, exchange="", correlation_id="sound", type="echo.done.v1")
            await broker_client.publish(client.reply_queue, b"what's up?", exchange="", correlation_id="broken", type="echo.done.v1")
            await broker_client.publish(client.reply_queue, {"text": "x"}, exchange="", correlation_id="sound", type="echo.done.v1")
            assert await client.wait_for(SECONDS, "sound", sound) == {"text": "x"}
            with pytest.raises(ReplyFault, match="reply-unreadable"):
                await client.wait_for(SECONDS, "broken", broken)
