"""FastStream's own tools on the subscribers of a worker: its test broker runs their delivery handling, its AsyncAPI document names them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from faststream import BaseMiddleware
from faststream.rabbit import RabbitBroker, TestRabbitBroker
from faststream.specification import AsyncAPI

from bus.actor import Actor, Context, Handler, Resources
from bus.amqp.broker import create_broker, quorum_queue, subscribe
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher
from bus.persistence.inbox import NullInbox
from bus.settings import BusSettings
from bus.worker.cancellation import CancellationRegistry
from bus.worker.consumer import DeliveryConsumer
from bus.worker.in_flight import InFlightTasks
from contracts.broker_names import dead_letter_queue
from contracts.wire import Result
from contracts.wire_model import WireModel


class Shout(WireModel):
    text: str


class Shouted(Result):
    text: str


async def shout(command: Shout, _: Context) -> Shouted:
    return Shouted(text=command.text.upper())


@asynccontextmanager
async def open_shout(_: Resources) -> AsyncIterator[Handler]:
    yield shout


class RecordingPublisher:
    """Confirms every message and keeps it."""

    def __init__(self) -> None:
        self.messages: list[OutboundMessage] = []

    async def publish_until_confirmed(self, *messages: OutboundMessage) -> None:
        self.messages += messages


ACTOR = Actor("shout", Shout, Shouted, open_shout, 10.0, 1, description="Write a text in capital letters.", emit_events=False)


@pytest.fixture
def publisher() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def broker(publisher: RecordingPublisher) -> RabbitBroker:
    settings = BusSettings.model_validate({"amqp_url": "amqp://guest:guest@127.0.0.1:1/"})
    consumer = DeliveryConsumer(ACTOR, shout, NullInbox(), cast("Publisher", publisher), CancellationRegistry(), settings, asyncio.Lock())
    broker = create_broker(settings.broker_url, "test")
    queue = quorum_queue(ACTOR.queue, ACTOR.binding_keys[0])
    subscribe(broker, queue, consumer.on_message, prefetch=1, track=InFlightTasks().track, actor=ACTOR)
    return broker


async def test_test_broker_runs_a_command_to_its_reply(broker: RabbitBroker, publisher: RecordingPublisher) -> None:
    async with TestRabbitBroker(broker) as tested:
        await tested.publish(
            {"text": "quiet"}, routing_key="shout", exchange=ACTOR.exchange, reply_to="atelier.reply.test", message_id="message-1"
        )

    (reply,) = [message for message in publisher.messages if message.routing_key == "atelier.reply.test"]
    assert json.loads(reply.body)["text"] == "QUIET"


async def test_test_broker_dead_letters_an_invalid_command(broker: RabbitBroker, publisher: RecordingPublisher) -> None:
    async with TestRabbitBroker(broker) as tested:
        await tested.publish({"text": 7}, routing_key="shout", exchange=ACTOR.exchange, message_id="message-1")

    assert dead_letter_queue("shout") in {message.routing_key for message in publisher.messages}


async def test_middlewares_see_what_goes_through_the_test_broker(broker: RabbitBroker) -> None:
    seen = list[str]()

    class Recorder(BaseMiddleware[Any, Any]):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            seen.append(msg.message_id)
            return await call_next(msg)

    broker.add_middleware(Recorder)
    async with TestRabbitBroker(broker) as tested:
        await tested.publish({"text": "quiet"}, routing_key="shout", exchange=ACTOR.exchange, message_id="message-1")

    assert seen == ["message-1"]


def test_document_of_faststream_names_queue_command_and_description(broker: RabbitBroker) -> None:
    document = AsyncAPI(broker).to_specification().to_jsonable()

    (channel,) = document["channels"].values()
    assert channel["bindings"]["amqp"]["queue"]["name"] == ACTOR.queue
    assert document["components"]["schemas"]["Shout"]["properties"]["text"]["type"] == "string"
    assert ACTOR.description in json.dumps(document)
