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
from bus.actor import Actor, Context, Handler, Tools
from bus.errors import PermanentError
from contracts import channels
from contracts.image_generation import NestedOrder
from contracts.steps import COMMANDS, RESULTS
from contracts.wire import Command, Header, Result
from ops.workshop import hire
from tests.integration.conftest import Customer, Workshop, soon
from tests.painter import PAINTER
from tests.strangers import Strange, strangers

MESSAGES = 60
REAL = ("watermark", "overlay", "upload", "webhook")
"""Steps with their own actors here; the painter does `image`, and the rest need a model and refuse what they understood."""

pytestmark = pytest.mark.timeout(180)


def refusing(step: str) -> Actor:
    async def refuse(command: Command, context: Context) -> Result:
        raise PermanentError("no-model", "understood, but there is no model here")

    @asynccontextmanager
    async def open_refusing(tools: Tools) -> AsyncIterator[Handler]:
        yield refuse

    return Actor(step=step, command=COMMANDS[step], result=RESULTS[step], open=open_refusing, timeout_seconds=5, prefetch=16)


def everyone() -> list[Actor]:
    others = [refusing(step) for step in COMMANDS if step not in (*REAL, "image")]
    return [*hire(list(REAL)).actors, PAINTER, *others]


class Registrar:
    """Which messages have come to their end."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()

    async def bury(self, message: AbstractIncomingMessage) -> None:
        assert message.headers[Header.FAULT_CODE]
        self.ends[str(message.message_id)] += 1


async def send(customer: Customer, queue: str, stranger: Strange) -> str:
    """Publish what a stranger says, to the queue itself."""
    properties = {"message_id": uuid4().hex, "delivery_mode": 2} | stranger.properties
    await customer.channel.default_exchange.publish(aio_pika.Message(stranger.body, **properties), queue)
    return str(properties["message_id"])


async def registrar(customer: Customer, names: list[str]) -> Registrar:
    found = Registrar()
    for name in names:
        queue = await customer.channel.declare_queue(channels.dead_queue(name), durable=True, arguments={"x-queue-type": "quorum"})
        await queue.consume(found.bury, no_ack=True)
    return found


@pytest.mark.parametrize("step", [*COMMANDS])
async def test_whatever_a_stranger_says_has_an_end(step: str, workshop: Workshop, customer: Customer) -> None:
    """No message stays unsettled, the queue is empty afterwards, and its consumer answers the next honest question."""
    async with workshop(*everyone()):
        heard = await customer.events(f"{step}.*.#")
        found = await registrar(customer, [*COMMANDS])
        sent = [await send(customer, channels.work_queue(step), stranger) for stranger in strangers(COMMANDS[step], MESSAGES)]

        async def all_ended() -> bool:
            while not heard.empty():
                event = heard.get_nowait()
                if event["kind"] in {"completed", "failed", "cancelled"}:
                    found.ends[event["message_id"]] += 1
            return not set(sent) - set(found.ends)

        await soon(all_ended, 60)
        await soon(partial(idle, customer, step), 20)
        await customer.send(step, b"{", reply_to=customer.reply_queue)
        assert (await customer.reply())[1]["code"] == "invalid-json"


async def idle(customer: Customer, step: str) -> bool:
    queue = await customer.channel.declare_queue(channels.work_queue(step), passive=True)
    return queue.declaration_result.message_count == 0


async def test_whatever_a_stranger_orders_has_an_end(workshop: Workshop, customer: Customer) -> None:
    """The same at the foreign queue, where the message has no id that we know."""
    async with workshop(*everyone(), adapters=[ADAPTER]):
        accepted = await customer.events("job.accepted.#")
        dead: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        queue = await customer.channel.get_queue(channels.dead_queue("image_generation"))
        await queue.consume(dead.put, no_ack=True)
        orders = strangers(NestedOrder, MESSAGES)
        for order in orders:
            await send(customer, channels.IMAGE_GENERATION, order)

        async def all_ended() -> bool:
            return accepted.qsize() + dead.qsize() >= len(orders)

        await soon(all_ended, 60)
        assert accepted.qsize() + dead.qsize() == len(orders)
        assert all(dead.get_nowait().headers[Header.FAULT_CODE] for _ in range(dead.qsize()))
