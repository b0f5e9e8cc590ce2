"""Who a message is, on the real broker and database: its inbox entry belongs to its content, a reply goes to reply queues only.

Every id of a message is chosen by its publisher. An id that two messages share must not give one the result of the other, and a queue
name in `reply_to` must not make an actor publish where its publisher may not.
"""

import asyncio
import json
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from bus.actor import Context
from contracts import broker_names
from contracts.control import Control
from contracts.wire import Header, Result
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor

SECRET_TEXT = "the text of the first publisher"


class Recorder:
    """A handler that records its commands and echoes them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def __call__(self, command: Echo, context: Context) -> Echoed:
        self.texts.append(command.text)
        return Echoed(text=command.text)


@pytest.mark.parametrize(
    "difference",
    [{"text": "other"}, {"tenant": "rival"}, {"job": "job-2"}, {"slip": {"answer": ["text"], "variables": {"text": "x"}}}],
    ids=lambda difference: next(iter(difference)),
)
async def test_same_id_with_other_content_tenant_or_job_is_another_message(
    start_worker: StartWorker, broker_client: BrokerClient, difference: dict[str, Any]
) -> None:
    """It runs, gets its own result, and its reply does not contain the result of the message whose id it names."""
    handler = Recorder()
    actor = echo_actor(handler)
    async with start_worker(actor):
        first: dict[str, Any] = {"message_id": "shared-id", "correlation_id": "job-1", "headers": {Header.TENANT.value: "acme"}}
        await broker_client.publish(actor.step, {"text": SECRET_TEXT}, reply_to=broker_client.reply_queue, **first)
        assert (await broker_client.next_reply())[1]["text"] == SECRET_TEXT
        second = first | {
            "correlation_id": difference.get("job", "job-1"),
            "headers": {Header.TENANT.value: difference.get("tenant", "acme")},
        }
        body = {"text": difference.get("text", SECRET_TEXT)} | ({"slip": difference["slip"]} if "slip" in difference else {})
        await broker_client.publish(actor.step, body, reply_to=broker_client.reply_queue, **second)
        assert (await broker_client.next_reply())[1]["text"] == body["text"]
    assert handler.texts == [SECRET_TEXT, body["text"]]


async def test_same_message_again_is_answered_from_inbox(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    handler = Recorder()
    actor = echo_actor(handler)
    async with start_worker(actor):
        for _ in range(2):
            await broker_client.publish(
                actor.step, {"text": "x"}, message_id="again", correlation_id="job-1", reply_to=broker_client.reply_queue
            )
            assert (await broker_client.next_reply())[1] == {"text": "x"}
    assert handler.texts == ["x"]


async def test_id_that_names_an_inbox_entry_gives_no_result_of_it(
    start_worker: StartWorker, broker_client: BrokerClient, database_url: str
) -> None:
    """Whoever reads the table, or computes the name of an entry, cannot use it as a message id."""
    handler = Recorder()
    actor = echo_actor(handler)
    async with start_worker(actor):
        await broker_client.publish(actor.step, {"text": SECRET_TEXT}, message_id="victim", reply_to=broker_client.reply_queue)
        await broker_client.next_reply()
        (entry,) = await _entries(database_url, actor.step)
        for headers in ({}, {"atelier-former-id": entry}):
            await broker_client.publish(
                actor.step, {"text": "attack"}, message_id=entry, reply_to=broker_client.reply_queue, headers=headers
            )
            assert (await broker_client.next_reply())[1] == {"text": "attack"}


async def _entries(database_url: str, step: str) -> list[str]:
    connection = await asyncpg.connect(database_url)
    try:
        return [row["message_id"] for row in await connection.fetch("select message_id from atelier.inbox where step = $1", step)]
    finally:
        await connection.close()


@pytest.mark.parametrize("queue", ["atelier.upload", "image_generation", "atelier.dead.image", "atelier.control.x", "billing"])
async def test_reply_to_of_another_queue_is_refused(start_worker: StartWorker, broker_client: BrokerClient, queue: str) -> None:
    """The handler does not run, nothing is published to the queue, and the dead letter names the cause and the cure."""
    handler = Recorder()
    actor = echo_actor(handler)
    async with start_worker(actor):
        await broker_client.channel.declare_queue("billing", exclusive=True)
        await broker_client.channel.declare_queue(broker_names.IMAGE_GENERATION_QUEUE, durable=True)
        await broker_client.publish(actor.step, {"text": "x"}, reply_to=queue)
        letter = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
        assert letter.headers[Header.FAULT_CODE] == "reply-to-refused"
        assert "amq.gen-" in str(letter.headers[Header.FAULT_MESSAGE])
        assert queue in str(letter.headers[Header.FAULT_MESSAGE])
        if queue != "atelier.control.x":
            source = await broker_client.channel.declare_queue(queue, passive=True)
            assert source.declaration_result.message_count == 0
        assert handler.texts == []
        await broker_client.publish(actor.step, {"text": "next"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1] == {"text": "next"}


async def test_query_with_refused_reply_to_is_dropped(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    handler = Recorder()
    actor = replace(echo_actor(handler), deduplicate=False, emit_events=False, is_query=True)
    async with start_worker(actor):
        await broker_client.publish(actor.step, {"text": "x"}, reply_to="atelier.upload")
        await broker_client.publish(actor.step, {"text": "y"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1] == {"text": "y"}
        upload = await broker_client.channel.declare_queue("atelier.upload", passive=True)
        assert upload.declaration_result.message_count == 0
    assert handler.texts == ["y"]


async def test_discovery_request_replies_to_reply_queues_only(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """A worker's status is sent to no work queue; one with a reply queue is."""
    actor = echo_actor(Recorder())
    request = {"type": "roll-call.v1", "exchange": broker_names.CONTROL_EXCHANGE}
    async with start_worker(actor):
        await broker_client.publish("", {}, reply_to="atelier.upload", **request)
        await broker_client.publish("", {}, reply_to=broker_client.reply_queue, **request)
        reply = await asyncio.wait_for(broker_client.replies.get(), 5)
        assert actor.step in json.dumps(json.loads(reply.body))
        await broker_client.publish("", Control(cancel="nobody").model_dump(), exchange=broker_names.CONTROL_EXCHANGE)
        upload = await broker_client.channel.declare_queue("atelier.upload", passive=True)
        assert upload.declaration_result.message_count == 0


class Measured(Result):
    """A result whose JSON a column of the type jsonb returns in another form."""

    data: dict[str, Any]


async def test_outcome_published_again_from_inbox_is_the_same_message(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """The next command is built from the stored result, with keys in another order and other digits, and from another run's log."""
    runs: list[str] = []

    async def measure(command: Echo, context: Context) -> Measured:
        return Measured(data={"bb": 1e22, "a": {"y": -0.0, "x": 1.0}, "nul": "\0 and \\u0000", "tiny": 1e-7})

    async def count(command: Echo, context: Context) -> Echoed:
        runs.append(command.text)
        return Echoed(text=command.text)

    first = replace(echo_actor(measure), result=Measured)
    slip = {"itinerary": [{"step": "watermark", "arguments": {"text": "next"}}, {"step": "upload", "arguments": {"text": "last"}}]}
    async with start_worker(first, replace(echo_actor(count), step="watermark"), replace(echo_actor(count), step="upload")):
        ended = await broker_client.subscribe_events("job.completed.measured")
        for _ in range(2):
            await broker_client.publish(first.step, {"text": "x", "slip": slip}, message_id="measured", correlation_id="measured")
            assert await asyncio.wait_for(ended.get(), 10)
    assert runs == ["next", "last"]
