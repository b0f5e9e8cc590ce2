"""Fuzzed messages on every queue of the real broker: each reaches an outcome, and every consumer continues."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from actors.adapters.image_generation import build_adapter
from bus.actor import Actor, Adapter, Context, Handler, IgnoredMessage, InvalidMessage, Resources
from bus.errors import PermanentError
from contracts import broker_names
from contracts.image_generation import NestedOrder
from contracts.steps import COMMANDS, RESULTS
from contracts.wire import Command, Header, Result
from ops.registry import load_actors
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.fuzz import FuzzMessage, fuzz_messages
from tests.support.hostile_messages import HostileMessage, hostile_messages, publish_all

MESSAGE_COUNT = 60
VALID_ORDER: dict[str, Any] = {"type": "image_generation", "data": {"generation_id": 4714, "prompt": "harbour", "aspect_ratio": "1:1"}}
REAL_ACTORS = ("watermark", "overlay", "upload", "webhook")
"""Steps that run their own actors. `image` has a fake actor; the others, which need a model, have one that refuses valid commands."""

pytestmark = pytest.mark.timeout(180)


def refusing_actor(step: str) -> Actor:
    async def refuse(command: Command, context: Context) -> Result:
        raise PermanentError("no-model", "the command is valid, but this worker has no model")

    @asynccontextmanager
    async def open_refusing(resources: Resources) -> AsyncIterator[Handler]:
        yield refuse

    return Actor(step=step, command=COMMANDS[step], result=RESULTS[step], open=open_refusing, timeout_seconds=5, prefetch=16)


def all_actors() -> list[Actor]:
    others = [refusing_actor(step) for step in COMMANDS if step not in (*REAL_ACTORS, "image")]
    return [*load_actors(list(REAL_ACTORS)).actors, FAKE_IMAGE_ACTOR, *others]


class OutcomeCounter:
    """Counts the outcomes of each message; dead letters by their consumer."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    async def on_dead_letter(self, message: AbstractIncomingMessage) -> None:
        assert message.headers[Header.FAULT_CODE]
        self.outcomes[str(message.message_id)] += 1


async def send(broker_client: BrokerClient, queue: str, message: FuzzMessage) -> str:
    """Publish to the queue itself; returns the message id."""
    properties: dict[str, Any] = {"message_id": uuid4().hex, "delivery_mode": 2} | message.properties
    await broker_client.channel.default_exchange.publish(aio_pika.Message(message.body, **properties), queue)
    return str(properties["message_id"])


async def count_dead_letters(broker_client: BrokerClient, names: list[str]) -> OutcomeCounter:
    counter = OutcomeCounter()
    for name in names:
        queue = await broker_client.channel.declare_queue(
            broker_names.dead_letter_queue(name), durable=True, arguments={"x-queue-type": "quorum"}
        )
        await queue.consume(counter.on_dead_letter, no_ack=True)
    return counter


@pytest.mark.parametrize("step", [*COMMANDS])
async def test_fuzzed_command_always_reaches_an_outcome(step: str, start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """No message stays unacknowledged, the queue is empty afterwards, and its consumer processes the next message."""
    async with start_worker(*all_actors()):
        events = await broker_client.subscribe_events(f"{step}.*.#")
        counter = await count_dead_letters(broker_client, [*COMMANDS])
        messages = fuzz_messages(COMMANDS[step], MESSAGE_COUNT)
        sent = [await send(broker_client, broker_names.work_queue(step), message) for message in messages]

        async def all_ended() -> bool:
            while not events.empty():
                event = events.get_nowait()
                if event["kind"] in {"completed", "failed", "cancelled"}:
                    counter.outcomes[event["message_id"]] += 1
            return not set(sent) - set(counter.outcomes)

        await wait_until(all_ended, 60)
        await wait_until(partial(queue_is_empty, broker_client, step), 20)
        await broker_client.publish(step, b"{", reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1]["code"] == "invalid-json"


async def queue_is_empty(broker_client: BrokerClient, step: str) -> bool:
    queue = await broker_client.channel.declare_queue(broker_names.work_queue(step), passive=True)
    return queue.declaration_result.message_count == 0


async def test_fuzzed_order_always_reaches_an_outcome(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """The same for the foreign queue, whose outcomes are accepted jobs and dead letters. A message of another type is acknowledged only."""
    adapter = build_adapter()
    async with start_worker(*all_actors(), adapters=[adapter]):
        accepted = await broker_client.subscribe_events("job.accepted.#")
        dead: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        queue = await broker_client.channel.get_queue(broker_names.dead_letter_queue("image_generation"))
        await queue.consume(dead.put, no_ack=True)
        orders = [*fuzz_messages(NestedOrder, MESSAGE_COUNT), FuzzMessage(json.dumps(VALID_ORDER).encode())]
        for order in orders:
            await send(broker_client, broker_names.IMAGE_GENERATION_QUEUE, order)

        expected = sum(not is_of_another_type(adapter, order.body) for order in orders)

        async def all_ended() -> bool:
            return accepted.qsize() + dead.qsize() >= expected

        await wait_until(all_ended, 60)
        assert accepted.qsize() + dead.qsize() == expected > len(orders) / 2
        assert accepted.qsize() > 0
        assert dead.qsize() > 0
        assert all(dead.get_nowait().headers[Header.FAULT_CODE] for _ in range(dead.qsize()))


def is_of_another_type(adapter: Adapter, body: bytes) -> bool:
    try:
        adapter.translate(body)
    except IgnoredMessage:
        return True
    except InvalidMessage:
        return False
    return False


HOSTILE_ROUNDS = int(os.environ.get("HOSTILE_ROUNDS", "1"))
"""More draw more mixed headers; each adds 40 messages a queue."""
HONEST_EVERY = 16
SILENCE_SECONDS = 5.0


class HostileTraffic:
    """Publishes hostile messages to a queue, with honest ones between them, and collects the dead letters by body."""

    def __init__(self, broker_client: BrokerClient, amqp_url: str) -> None:
        self.broker_client, self._url = broker_client, amqp_url
        self.causes: dict[bytes, Any] = {}

    async def collect_dead_letters(self, name: str) -> None:
        async def on_dead_letter(message: AbstractIncomingMessage) -> None:
            self.causes[message.body] = message.headers.get(Header.FAULT_CODE)

        queue = await self.broker_client.channel.get_queue(broker_names.dead_letter_queue(name))
        await queue.consume(on_dead_letter, no_ack=True)

    async def send(self, queue: str, messages: Sequence[HostileMessage], honest: Callable[[], Awaitable[None]]) -> None:
        """Return when each honest message has been done; it is awaited for at most SILENCE_SECONDS."""
        for start in range(0, len(messages), HONEST_EVERY):
            await asyncio.to_thread(publish_all, self._url, messages[start : start + HONEST_EVERY], queue)
            async with asyncio.timeout(SILENCE_SECONDS):
                await honest()

    async def expect_dead_letters(self, messages: Sequence[HostileMessage]) -> None:
        expected = {message.body: message.cause for message in messages}

        async def all_dead() -> bool:
            return expected.keys() <= self.causes.keys()

        await wait_until(all_dead, 10)
        assert {body: self.causes[body] for body in expected} == expected


@pytest.fixture
async def hostile_traffic(broker_client: BrokerClient, amqp_url: str) -> HostileTraffic:
    return HostileTraffic(broker_client, amqp_url)


async def test_hostile_command_ends_and_honest_ones_are_done(
    start_worker: StartWorker, broker_client: BrokerClient, hostile_traffic: HostileTraffic
) -> None:
    """Every field type in every property and header. Each is dead-lettered with its cause; the queue is never silent for long."""

    async def echo(command: Echo, context: Context) -> Echoed:
        return Echoed(text=command.text)

    actor = echo_actor(echo)
    messages = hostile_messages(rounds=HOSTILE_ROUNDS)

    async def honest() -> None:
        await broker_client.publish(actor.step, {"text": "honest"}, reply_to=broker_client.reply_queue)
        assert await broker_client.next_reply() == (f"{actor.step}.done.v1", {"text": "honest"})

    async with start_worker(actor):
        await hostile_traffic.collect_dead_letters(actor.step)
        await hostile_traffic.send(actor.queue, messages, honest)
        await hostile_traffic.expect_dead_letters(messages)


async def test_hostile_headers_on_valid_command_end_it(
    start_worker: StartWorker, broker_client: BrokerClient, hostile_traffic: HostileTraffic
) -> None:
    """It is done, dropped or dead-lettered, also where the headers are read only after the handler: none of them is left unacknowledged."""

    async def fail(command: Echo, context: Context) -> Echoed:
        if command.text.isdigit():
            raise RuntimeError(command.text)
        return Echoed(text=command.text)

    actor = echo_actor(fail)
    messages = hostile_messages(lambda number: b'{"text": "%d"}' % number, cause=None, rounds=HOSTILE_ROUNDS)

    async def honest() -> None:
        await broker_client.publish(actor.step, {"text": "honest"}, reply_to=broker_client.reply_queue)
        while (await broker_client.next_reply())[1] != {"text": "honest"}:
            pass

    async with start_worker(actor):
        await hostile_traffic.send(actor.queue, messages, honest)
        await wait_until(partial(queue_is_empty, broker_client, actor.step), 20)
        await wait_until(partial(no_retry_waits, broker_client), 10)
    assert await queue_is_empty(broker_client, actor.step), "a message was left unacknowledged: it is back after the worker has stopped"


async def no_retry_waits(broker_client: BrokerClient) -> bool:
    delay_queues = [await broker_client.channel.get_queue(broker_names.retry_exchange(delay)) for delay in (0.1, 0.2, 0.5)]
    return not any(queue.declaration_result.message_count for queue in delay_queues)


async def test_hostile_order_ends_and_honest_ones_are_accepted(
    start_worker: StartWorker, broker_client: BrokerClient, hostile_traffic: HostileTraffic
) -> None:
    """The same for the foreign queue."""
    messages = hostile_messages(rounds=HOSTILE_ROUNDS)
    numbers = iter(range(10_000, 20_000))
    async with start_worker(FAKE_IMAGE_ACTOR, adapters=[build_adapter()]):
        accepted = await broker_client.subscribe_events("job.accepted.#")

        async def honest() -> None:
            order = VALID_ORDER | {"data": VALID_ORDER["data"] | {"generation_id": next(numbers)}}
            await send(broker_client, broker_names.IMAGE_GENERATION_QUEUE, FuzzMessage(json.dumps(order).encode()))
            await accepted.get()

        await hostile_traffic.collect_dead_letters("image_generation")
        await hostile_traffic.send(broker_names.IMAGE_GENERATION_QUEUE, messages, honest)
        await hostile_traffic.expect_dead_letters(messages)
    assert hostile_traffic.causes.keys() == {message.body for message in messages}, "no honest order is dead-lettered"
