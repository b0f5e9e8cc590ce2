"""`RequestClient` with a publisher that only records: replies, faults, streams, time-outs and cancellations."""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bus.amqp.messages import OutboundMessage
from bus.amqp.propagation import propagate_headers
from bus.amqp.publisher import Publisher
from bus.amqp.request_reply import ReplyChunk, ReplyFault, ReplyTimeout, RequestClient
from bus.errors import PublishError
from contracts.broker_names import CONTROL_EXCHANGE
from contracts.wire import Header

FAULT = {"code": "not-today", "message": "come back tomorrow", "step": "echo", "attempts": 1}
Responder = Callable[[OutboundMessage], list[tuple[str, Any]]]


class RecordingPublisher:
    """Records what is published, and delivers the messages that `respond` returns for a command to its client."""

    def __init__(self, respond: Responder) -> None:
        self._respond = respond
        self.client = RequestClient(cast("Publisher", self), "atelier.reply.test")
        self.commands: list[OutboundMessage] = []
        self.cancelled: list[str] = []
        self.consumers: dict[str, int] = {}

    async def publish(self, message: OutboundMessage) -> None:
        if message.exchange == CONTROL_EXCHANGE:
            self.cancelled.append(json.loads(message.body)["cancel"])
            return
        self.commands.append(message)
        for message_type, body in self._respond(message):
            await deliver(self.client, message.job_id, message_type, body)

    async def consumer_count(self, queue: str) -> int:
        return self.consumers.get(queue, 0)


async def deliver(client: RequestClient, job_id: str, message_type: str, body: Any) -> None:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    await client.on_message(cast("Any", SimpleNamespace(correlation_id=job_id, type=message_type, body=encoded)))


def respond_with(*messages: tuple[str, Any]) -> RecordingPublisher:
    return RecordingPublisher(lambda command: list(messages))


def delta(number: Any, text: str = "") -> tuple[str, Any]:
    return "echo.delta.v1", {"sequence": number, "delta": text}


async def test_reply_is_returned_and_command_carries_its_metadata() -> None:
    publisher = respond_with(("echo.done.v1", {"text": "hello"}))
    before = datetime.now(UTC)
    with propagate_headers({Header.REQUEST_ID.value: "r-1"}):
        assert await publisher.client.request("echo", {"text": "x"}, seconds=30, tenant="acme", job_id="job-1") == {"text": "hello"}
    [command] = publisher.commands
    assert (command.exchange, command.routing_key, command.type) == ("atelier.commands", "echo", "echo.v1")
    assert (command.message_id, command.job_id, command.reply_to, command.mandatory) == ("job-1", "job-1", "atelier.reply.test", True)
    assert (command.headers[Header.TENANT], command.headers[Header.REQUEST_ID]) == ("acme", "r-1")
    deadline = datetime.fromisoformat(command.headers[Header.DEADLINE])
    assert timedelta(seconds=30) <= deadline - before < timedelta(seconds=31)
    assert (publisher.cancelled, publisher.client.pending_count) == ([], 0)


async def test_fault_is_raised_with_job_id() -> None:
    publisher = respond_with(("fault.v1", FAULT))
    with pytest.raises(ReplyFault, match="not-today: come back tomorrow") as raised:
        await publisher.client.request("echo", {}, seconds=5, job_id="job-1")
    assert raised.value.job_id == "job-1"


async def test_reply_that_is_no_json_is_a_fault() -> None:
    with pytest.raises(ReplyFault) as raised:
        await respond_with(("echo.done.v1", b"{")).client.request("echo", {}, seconds=5)
    assert raised.value.fault.code == "reply-unreadable"


async def test_late_reply_is_counted() -> None:
    client = respond_with().client
    with pytest.raises(ReplyTimeout, match=r"no reply within 0\.01 s; the job is job-1"):
        await client.request("echo", {}, seconds=0.01, job_id="job-1")
    await deliver(client, "job-1", "echo.done.v1", {"text": "late"})
    await deliver(client, "unknown", "echo.done.v1", {})
    assert (client.late_replies, client.pending_count) == (2, 0)


async def test_second_reply_is_counted_as_late() -> None:
    client = respond_with(("echo.done.v1", {"text": "first"}), ("echo.done.v1", {"text": "second"})).client
    assert await client.request("echo", {}, seconds=5) == {"text": "first"}
    assert client.late_replies == 1


async def test_cancelled_request_cancels_job() -> None:
    publisher = respond_with()
    task = asyncio.create_task(publisher.client.request("echo", {}, seconds=5, job_id="job-1"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (publisher.cancelled, publisher.client.pending_count) == (["job-1"], 0)


async def test_failed_publish_is_raised_and_not_cancelled() -> None:
    def refuse(command: OutboundMessage) -> list[tuple[str, Any]]:
        raise PublishError("no confirm")

    publisher = RecordingPublisher(refuse)
    with pytest.raises(PublishError):
        await publisher.client.request("echo", {}, seconds=5)
    assert (publisher.cancelled, publisher.client.pending_count) == ([], 0)


async def test_several_callers_may_await_one_reply() -> None:
    client = respond_with().client
    with client.expect_reply("job-1") as first, client.expect_reply("job-1") as second:
        assert client.pending_count == 1
        await deliver(client, "job-1", "echo.done.v1", {"text": "x"})
        replies = [await client.wait_for(1, "job-1", reply) for reply in (first, second)]
    assert (replies, client.pending_count) == ([{"text": "x"}] * 2, 0)


async def test_has_consumer_asks_for_the_work_queue() -> None:
    publisher = respond_with()
    publisher.consumers["atelier.echo"] = 1
    assert await publisher.client.has_consumer("echo")
    assert not await publisher.client.has_consumer("other")


async def read_stream(publisher: RecordingPublisher, seconds: float = 5) -> list[ReplyChunk]:
    return [chunk async for chunk in publisher.client.stream("echo", {}, seconds=seconds, job_id="job-1")]


async def test_stream_yields_deltas_then_result() -> None:
    publisher = respond_with(delta(0, "a"), delta(1, "b"), ("echo.done.v1", {"text": "ab", "deltas": 2}))
    chunks = await read_stream(publisher)
    assert [(chunk.body.get("delta"), chunk.final) for chunk in chunks] == [("a", False), ("b", False), (None, True)]
    assert (chunks[-1].body["text"], publisher.cancelled, publisher.client.pending_count) == ("ab", [], 0)


@pytest.mark.parametrize(
    "messages",
    [
        [delta(1)],
        [delta(0), delta(2)],
        [delta(0), delta(0)],
        [delta(None)],
        [delta(0), ("echo.done.v1", {"deltas": 2})],
    ],
)
async def test_missing_or_repeated_delta_breaks_stream(messages: list[tuple[str, Any]]) -> None:
    publisher = respond_with(*messages)
    with pytest.raises(ReplyFault) as raised:
        await read_stream(publisher)
    assert (raised.value.fault.code, raised.value.job_id) == ("stream-broken", "job-1")
    finished = messages[-1][0] == "echo.done.v1"
    assert publisher.cancelled == ([] if finished else ["job-1"])


async def test_result_without_delta_count_ends_stream() -> None:
    chunks = await read_stream(respond_with(delta(0), ("echo.done.v1", {"text": "x"})))
    assert [chunk.final for chunk in chunks] == [False, True]


async def test_fault_ends_stream_after_its_deltas() -> None:
    publisher = respond_with(delta(0, "a"), ("fault.v1", FAULT))
    stream = publisher.client.stream("echo", {}, seconds=5)
    assert (await anext(stream)).body["delta"] == "a"
    with pytest.raises(ReplyFault) as raised:
        await anext(stream)
    assert (raised.value.fault.code, publisher.cancelled) == ("not-today", [])


async def test_stream_without_result_times_out_and_cancels_job() -> None:
    publisher = respond_with(delta(0))
    with pytest.raises(ReplyTimeout):
        await read_stream(publisher, seconds=0.01)
    assert publisher.cancelled == ["job-1"]


async def test_closed_stream_cancels_job() -> None:
    publisher = respond_with(delta(0), delta(1))
    async with aclosing(publisher.client.stream("echo", {}, seconds=5, job_id="job-1")) as chunks:
        assert (await anext(chunks)).body["sequence"] == 0
    assert (publisher.cancelled, publisher.client.pending_count) == (["job-1"], 0)


async def test_delta_for_a_plain_request_is_ignored() -> None:
    assert await respond_with(delta(0), ("echo.done.v1", {"text": "x"})).client.request("echo", {}, seconds=5) == {"text": "x"}
