"""One failing queue takes no other queue of its process along: the others go on within SILENCE_SECONDS, and the delivery ends."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from bus.actor import Actor, Adapter, Context, TranslatedCommand
from bus.amqp.discovery import discover_workers
from bus.amqp.messages import build_cancel
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import ReplyFault, open_request_client
from bus.amqp.subscriptions import open_job_subscription, subscribe_events
from bus.amqp.topology import QueueDepth, read_queue_depth
from bus.delivery import Delivery
from bus.observability import metrics, tracing
from bus.settings import BusSettings
from bus.worker import adapter, consumer, outgoing
from bus.worker.pg_listener import PgListener
from contracts import broker_names
from contracts.wire import Header
from ops.local.rabbitmq import RabbitNode
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor, wait_until
from tests.support.hostile_messages import hostile_messages, publish_all

SILENCE_SECONDS = 5.0
BAD_KEY = b"job.completed.\xff\xfe"

pytestmark = pytest.mark.timeout(60)


async def echo(command: Echo, context: Context) -> Echoed:
    return Echoed(text=command.text)


@pytest.fixture
def healthy() -> Actor:
    """The other actor of the process."""
    return echo_actor(echo)


async def expect_answer(broker_client: BrokerClient, actor: Actor, seconds: float = SILENCE_SECONDS) -> None:
    """Fails when a command to the actor is not answered in time."""
    await broker_client.publish(actor.step, {"text": "honest"}, reply_to=broker_client.reply_queue)
    assert await broker_client.next_reply(seconds) == (f"{actor.step}.done.v1", {"text": "honest"})


async def read_depth(amqp_url: str, queue: str) -> QueueDepth | None:
    """On a connection of its own, since the broker closes the channel that asks for a queue that does not exist."""
    async with await aio_pika.connect(amqp_url) as connection:
        return await read_queue_depth(await connection.channel(), queue)


async def test_hanging_handler_delays_no_other_queue(start_worker: StartWorker, broker_client: BrokerClient, healthy: Actor) -> None:
    hanging_ids = []

    async def hang(command: Echo, context: Context) -> Echoed:
        hanging_ids.append(context.message_id)
        await asyncio.Event().wait()
        return Echoed(text="")

    hanging = echo_actor(hang, prefetch=1, timeout_seconds=30.0)
    async with start_worker(hanging, healthy):
        for _ in range(3):
            await broker_client.publish(hanging.step, {"text": "x"})
        await expect_answer(broker_client, healthy)
        assert len(hanging_ids) == 1, "the first of them hangs, and its prefetch keeps the others in the queue"


async def test_deleted_queue_is_consumed_again_and_others_go_on(
    start_worker: StartWorker, broker_client: BrokerClient, healthy: Actor, amqp_url: str
) -> None:
    deleted = echo_actor(echo)
    async with start_worker(deleted, healthy):
        await expect_answer(broker_client, deleted)
        await broker_client.channel.queue_delete(deleted.queue)
        await expect_answer(broker_client, healthy)

        async def is_consumed() -> bool:
            depth = await read_depth(amqp_url, deleted.queue)
            return depth is not None and depth.consumers > 0

        await wait_until(is_consumed, 20)
        await expect_answer(broker_client, deleted)
    assert await is_empty(broker_client, deleted.queue)


async def test_channel_that_the_broker_closes_takes_no_other_along(
    start_worker: StartWorker, broker_client: BrokerClient, healthy: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ack with a tag that does not exist closes its channel. The channel is opened again, and its message delivered again."""
    broken, acknowledge = echo_actor(echo), consumer._acknowledge
    failures = iter([True])

    async def acknowledge_wrongly(message: AbstractIncomingMessage, outcome: Any) -> None:
        if message.routing_key == broken.step and next(failures, False):
            await message.channel.basic_ack(999_999)
            return
        await acknowledge(message, outcome)

    monkeypatch.setattr(consumer, "_acknowledge", acknowledge_wrongly)
    async with start_worker(broken, healthy):
        await broker_client.publish(broken.step, {"text": "x"})
        await expect_answer(broker_client, healthy)
        await expect_answer(broker_client, broken, 15)
    assert await is_empty(broker_client, broken.queue)


async def is_empty(broker_client: BrokerClient, queue: str) -> bool:
    return not (await broker_client.channel.declare_queue(queue, passive=True)).declaration_result.message_count


async def test_result_that_cannot_be_encoded_is_dead_lettered(
    start_worker: StartWorker, broker_client: BrokerClient, healthy: Actor
) -> None:
    """Its reply and its event cannot be built."""

    async def surrogate(command: Echo, context: Context) -> Echoed:
        return Echoed(text="\ud800")

    broken = echo_actor(surrogate, deduplicate=False)
    async with start_worker(broken, healthy):
        message_id = await broker_client.publish(broken.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        letter = await broker_client.take_message(broker_names.dead_letter_queue(broken.step))
        assert (letter.message_id, letter.headers[Header.FAULT_CODE]) == (message_id, "internal-error")
        assert (await broker_client.next_reply())[1]["code"] == "internal-error"
        await expect_answer(broker_client, healthy)


Stage = tuple[Any, str]
STAGES: dict[str, Stage] = {
    "reading properties": (Delivery, "from_message"),
    "tracing": (tracing, "trace_delivery"),
    "starting": (consumer.DeliveryConsumer, "_start_run"),
    "reading the slip": (outgoing, "read_slip"),
    "deciding": (consumer.DeliveryConsumer, "decide"),
    "judging an error": (consumer, "after_error"),
    "building messages": (outgoing, "messages_for_outcome"),
    "building a dead letter": (outgoing, "build_dead_letter"),
    "outcome of the span": (tracing, "set_outcome"),
    "counting": (metrics, "record_delivery"),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
async def test_failure_at_any_stage_ends_the_delivery(
    stage: Stage, start_worker: StartWorker, broker_client: BrokerClient, healthy: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last way to dead-letter uses the body and the cause alone. Nothing is left unacknowledged."""
    broken = echo_actor(echo)
    async with start_worker(broken, healthy):
        with monkeypatch.context() as patch:
            patch.setattr(*stage, fail)
            await broker_client.publish(broken.step, b"{broken")
            letter = await broker_client.take_message(broker_names.dead_letter_queue(broken.step))
        assert letter.body == b"{broken"
        assert letter.headers[Header.FAULT_CODE] in {"internal-error", "invalid-json"}
        await expect_answer(broker_client, healthy)
    assert await is_empty(broker_client, broken.queue)


def fail(*arguments: Any, **more: Any) -> Any:
    raise RuntimeError("this stage is broken")


ADAPTER_STAGES: dict[str, Stage] = {
    "reading properties": (Delivery, "from_message"),
    "tracing": (tracing, "trace_delivery"),
    "building a dead letter": (outgoing, "build_dead_letter"),
    "describing the error": (adapter, "fault_from_error"),
    "counting": (metrics, "record_translation"),
}


@pytest.mark.parametrize("stage", ADAPTER_STAGES.values(), ids=ADAPTER_STAGES)
async def test_failure_at_any_stage_of_an_adapter_ends_the_delivery(
    stage: Stage, start_worker: StartWorker, broker_client: BrokerClient, healthy: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(body: bytes) -> TranslatedCommand:
        raise ValueError("no order")

    foreign = Adapter("foreign-orders", f"foreign-{healthy.step}", refuse)
    async with start_worker(healthy, adapters=[foreign]):
        await purge(broker_client, broker_names.dead_letter_queue(foreign.name))
        with monkeypatch.context() as patch:
            patch.setattr(*stage, fail)
            await broker_client.publish(foreign.queue, b"{broken", exchange="")
            letter = await broker_client.take_message(broker_names.dead_letter_queue(foreign.name))
        assert letter.body == b"{broken"
        await expect_answer(broker_client, healthy)
    assert await is_empty(broker_client, foreign.queue)
    await broker_client.channel.queue_delete(foreign.queue)


async def purge(broker_client: BrokerClient, queue: str) -> None:
    await (await broker_client.channel.get_queue(queue)).purge()


async def test_deleted_dead_letter_queue_is_declared_again(start_worker: StartWorker, broker_client: BrokerClient, amqp_url: str) -> None:
    """Else every later dead letter would wait for it, and the prefetch limit would stop the queue."""
    actor = echo_actor(echo)
    dead_letter_queue = broker_names.dead_letter_queue(actor.step)
    async with start_worker(actor):
        await broker_client.channel.queue_delete(dead_letter_queue)
        message_id = await broker_client.publish(actor.step, b"{")

        async def is_declared() -> bool:
            return await read_depth(amqp_url, dead_letter_queue) is not None

        await wait_until(is_declared)
        assert (await broker_client.take_message(dead_letter_queue)).message_id == message_id


async def test_hostile_control_messages_stop_no_process(
    start_worker: StartWorker, broker_client: BrokerClient, amqp_url: str, bus_settings: BusSettings, healthy: Actor
) -> None:
    """They reach every process, on the connection that it publishes with. Discovery and cancellation work afterwards."""
    started = asyncio.Event()

    async def wait(command: Echo, context: Context) -> Echoed:
        started.set()
        await asyncio.Event().wait()
        return Echoed(text="")

    waiting = echo_actor(wait, timeout_seconds=30.0)
    async with start_worker(waiting, healthy), open_publisher(bus_settings) as publisher:
        for body in (b"{", b"[]", b'{"cancel": "a\\u0000b"}', b'{"cancel": 7}', b"null"):
            messages = [replace(message, body=body) for message in hostile_messages()[:60]]
            await asyncio.to_thread(publish_all, amqp_url, messages, BAD_KEY, "atelier.control")
        events = await broker_client.subscribe_events(f"{waiting.step}.cancelled.#")
        await broker_client.publish(waiting.step, {"text": "x"}, correlation_id="job-7")
        await asyncio.wait_for(started.wait(), SILENCE_SECONDS)
        [status] = await discover_workers(publisher, SILENCE_SECONDS)
        assert {step.step for step in status.steps} == {waiting.step, healthy.step}
        await publisher.publish(build_cancel("job-7"))
        assert (await asyncio.wait_for(events.get(), SILENCE_SECONDS))["job_id"] == "job-7"
        await expect_answer(broker_client, healthy)


async def test_hostile_events_stop_no_subscription(broker_client: BrokerClient, amqp_url: str, bus_settings: BusSettings) -> None:
    """The queues of a gateway, which nobody acknowledges: a bad routing key and bad properties are logged, the next event arrives."""
    async with (
        open_publisher(bus_settings) as publisher,
        subscribe_events(publisher, "#") as events,
        open_job_subscription(publisher) as subscription,
        subscription.subscribe("j") as events_of_job,
    ):
        await asyncio.to_thread(publish_all, amqp_url, hostile_messages()[:100], BAD_KEY, broker_names.EVENTS_EXCHANGE)
        event = {"kind": "completed", "step": "job", "job_id": "j", "at": "2026-01-01T00:00:00Z", "message_id": "m"}
        await broker_client.publish("job.completed.j", event, exchange=broker_names.EVENTS_EXCHANGE)
        for queue in (events, events_of_job):
            assert (await asyncio.wait_for(queue.get(), SILENCE_SECONDS)).job_id == "j"


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b"{", b'"text"', b"\xff", b'{"code": 7}'])
async def test_reply_that_is_no_object_ends_its_request_alone(body: bytes, broker_client: BrokerClient, bus_settings: BusSettings) -> None:
    async with open_publisher(bus_settings) as publisher, open_request_client(publisher) as client:
        for kind in ("echo.done.v1", "fault.v1"):
            if body == b'{"code": 7}' and kind != "fault.v1":
                continue
            with client.expect_reply("job-1") as reply:
                await broker_client.publish(client.reply_queue, body, exchange="", correlation_id="job-1", type=kind)
                with pytest.raises(ReplyFault, match="reply-unreadable"):
                    await client.wait_for(SILENCE_SECONDS, "job-1", reply)


async def test_hostile_replies_stop_no_reply_queue(broker_client: BrokerClient, amqp_url: str, bus_settings: BusSettings) -> None:
    async with open_publisher(bus_settings) as publisher, open_request_client(publisher) as client:
        await asyncio.to_thread(publish_all, amqp_url, hostile_messages(), client.reply_queue)
        with client.expect_reply("job-1") as reply:
            await broker_client.publish(client.reply_queue, {"text": "honest"}, exchange="", correlation_id="job-1", type="echo.done.v1")
            assert await client.wait_for(SILENCE_SECONDS, "job-1", reply) == {"text": "honest"}


async def test_connections_of_a_worker_have_names(start_worker: StartWorker, rabbitmq: RabbitNode, healthy: Actor) -> None:
    """The broker's management lists them: an operator sees which process holds a queue."""
    async with start_worker(healthy):
        command = [str(rabbitmq.control_program), "-q", "list_connections", "client_properties"]
        listed = await asyncio.to_thread(lambda: subprocess.check_output(command, env=rabbitmq.environment, timeout=60).decode())
    worker = f"{socket.gethostname()}:{os.getpid()}"
    assert f"{worker} {healthy.step}" in listed
    assert f"{worker} publisher" in listed


async def test_row_that_cannot_be_translated_stops_no_listener(
    start_worker: StartWorker, broker_client: BrokerClient, healthy: Actor
) -> None:
    """The rows after it become commands, and so does the next sweep's."""

    def translate(row: Mapping[str, Any]) -> TranslatedCommand:
        if row["id"] == "bad":
            raise RuntimeError("no command for it")
        return TranslatedCommand(healthy.step, {"text": row["id"]}, f"{row['id']}-{row['at']}", f"job-{healthy.step}")

    due = "select id, clock_timestamp()::text as at from unnest(array['bad', 'good']) as id where $1::text[] is null"
    listener = PgListener("rows", "rows_changed", "id", due, translate, sweep_seconds=0.2)
    events = await broker_client.subscribe_events(f"{healthy.step}.completed.#")
    async with start_worker(healthy, adapters=[listener]):
        for _ in range(2):
            assert (await asyncio.wait_for(events.get(), SILENCE_SECONDS))["result"] == {"text": "good"}
