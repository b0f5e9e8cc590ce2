"""Strangers' messages on every queue of the real broker: each ends as a result or with its cause, and every consumer lives on."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from actors.adapters.image_generation import ADAPTER
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
REAL_ACTORS = ("watermark", "overlay", "upload", "webhook")
"""Steps with their own actors here; the painter does `image`, and the rest need a model and refuse what they understood."""

pytestmark = pytest.mark.timeout(180)


def refusing_actor(step: str) -> Actor:
    async def refuse(command: Command, context: Context) -> Result:
        raise PermanentError("no-model", "understood, but there is no model here")

    @asynccontextmanager
    async def open_refusing(tools: Resources) -> AsyncIterator[Handler]:
        yield refuse

    return Actor(step=step, command=COMMANDS[step], result=RESULTS[step], open=open_refusing, timeout_seconds=5, prefetch=16)


def all_actors() -> list[Actor]:
    others = [refusing_actor(step) for step in COMMANDS if step not in (*REAL_ACTORS, "image")]
    return [*load_actors(list(REAL_ACTORS)).actors, FAKE_IMAGE_ACTOR, *others]


class FailureCollector:
    """Which messages have come to their end."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()

    async def collect(self, message: AbstractIncomingMessage) -> None:
        assert message.headers[Header.FAULT_CODE]
        self.ends[str(message.message_id)] += 1


async def send(broker_client: BrokerClient, queue: str, stranger: FuzzMessage) -> str:
    """Publish what a stranger says, to the queue itself."""
    properties = {"message_id": uuid4().hex, "delivery_mode": 2} | stranger.properties
    await broker_client.channel.default_exchange.publish(aio_pika.Message(stranger.body, **properties), queue)
    return str(properties["message_id"])


async def collect_failures(broker_client: BrokerClient, names: list[str]) -> FailureCollector:
    found = FailureCollector()
    for name in names:
        queue = await broker_client.channel.declare_queue(
            broker_names.dead_letter_queue(name), durable=True, arguments={"x-queue-type": "quorum"}
        )
        await queue.consume(found.collect, no_ack=True)
    return found


@pytest.mark.parametrize("step", [*COMMANDS])
async def test_fuzzed_command_always_reaches_an_outcome(step: str, start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """No message stays unsettled, the queue is empty afterwards, and its consumer answers the next honest question."""
    async with start_worker(*all_actors()):
        heard = await broker_client.subscribe_events(f"{step}.*.#")
        found = await collect_failures(broker_client, [*COMMANDS])
        sent = [
            await send(broker_client, broker_names.work_queue(step), stranger) for stranger in fuzz_messages(COMMANDS[step], MESSAGE_COUNT)
        ]

        async def all_ended() -> bool:
            while not heard.empty():
                event = heard.get_nowait()
                if event["kind"] in {"completed", "failed", "cancelled"}:
                    found.ends[event["message_id"]] += 1
            return not set(sent) - set(found.ends)

        await wait_until(all_ended, 60)
        await wait_until(partial(queue_is_empty, broker_client, step), 20)
        await broker_client.publish(step, b"{", reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1]["code"] == "invalid-json"


async def queue_is_empty(broker_client: BrokerClient, step: str) -> bool:
    queue = await broker_client.channel.declare_queue(broker_names.work_queue(step), passive=True)
    return queue.declaration_result.message_count == 0


async def test_fuzzed_order_always_reaches_an_outcome(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """The same at the foreign queue, where the message has no id that we know."""
    async with start_worker(*all_actors(), adapters=[ADAPTER]):
        accepted = await broker_client.subscribe_events("job.accepted.#")
        dead: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        queue = await broker_client.channel.get_queue(broker_names.dead_letter_queue("image_generation"))
        await queue.consume(dead.put, no_ack=True)
        orders = fuzz_messages(NestedOrder, MESSAGE_COUNT)
        for order in orders:
            await send(broker_client, broker_names.IMAGE_GENERATION_QUEUE, order)

        async def all_ended() -> bool:
            return accepted.qsize() + dead.qsize() >= len(orders)

        await wait_until(all_ended, 60)
        assert accepted.qsize() + dead.qsize() == len(orders)
        assert all(dead.get_nowait().headers[Header.FAULT_CODE] for _ in range(dead.qsize()))
