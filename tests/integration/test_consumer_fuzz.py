"""Fuzzed messages on every queue of the real broker: each reaches an outcome, and every consumer continues."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from actors.adapters.image_generation import build_adapter
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from contracts import broker_names
from contracts.image_generation import NestedOrder
from contracts.steps import COMMANDS, RESULTS
from contracts.wire import Command, Header, Result
from ops.registry import load_actors
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.fuzz import FuzzMessage, fuzz_messages

MESSAGE_COUNT = 60
VALID_ORDER = {"type": "image_generation", "data": {"generation_id": 4714, "prompt": "harbour", "aspect_ratio": "1:1"}}
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
    properties = {"message_id": uuid4().hex, "delivery_mode": 2} | message.properties
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
    """The same for the foreign queue, whose outcomes are accepted jobs and dead letters."""
    async with start_worker(*all_actors(), adapters=[build_adapter()]):
        accepted = await broker_client.subscribe_events("job.accepted.#")
        dead: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        queue = await broker_client.channel.get_queue(broker_names.dead_letter_queue("image_generation"))
        await queue.consume(dead.put, no_ack=True)
        orders = [*fuzz_messages(NestedOrder, MESSAGE_COUNT), FuzzMessage(json.dumps(VALID_ORDER).encode())]
        for order in orders:
            await send(broker_client, broker_names.IMAGE_GENERATION_QUEUE, order)

        async def all_ended() -> bool:
            return accepted.qsize() + dead.qsize() >= len(orders)

        await wait_until(all_ended, 60)
        assert accepted.qsize() + dead.qsize() == len(orders)
        assert accepted.qsize() > 0
        assert dead.qsize() > 0
        assert all(dead.get_nowait().headers[Header.FAULT_CODE] for _ in range(dead.qsize()))
