"""Commands and queries: tenant, deadline, and the job that an error names."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import Request

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError
from contracts.fault import Fault
from contracts.wire import Header
from gateway.callers import set_caller
from gateway.problems import HttpProblem
from tests.support.fake_broker import FakePublisher, make_services

UNKNOWN = Fault(code="job-unknown", message="unknown", step="job.get")


def request_of(caller: str | None = "shop", **headers: str) -> Request:
    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "headers": encoded}
    set_caller(scope, caller, operator=False)
    return Request(scope)


@pytest.mark.parametrize(("arguments", "tenant"), [({}, "shop"), ({"tenant": "office"}, "office"), ({"tenant": None}, None)])
async def test_command_is_published_for_tenant(arguments: dict[str, Any], tenant: str | None) -> None:
    publisher = FakePublisher({"text": {"response": "x"}})
    reply = await make_services(publisher).commands.call(request_of(), "text", {"message": "hello"}, **arguments)
    assert (reply, publisher.commands("text")) == ({"response": "x"}, [{"message": "hello"}])
    assert publisher.messages[0].headers.get(Header.TENANT) == tenant


@pytest.mark.parametrize(
    ("headers", "arguments", "seconds"),
    [({}, {}, 300), ({"x_request_timeout": "7"}, {}, 7), ({"x_request_timeout": "7"}, {"seconds": 9}, 9)],
)
async def test_command_carries_deadline(headers: dict[str, str], arguments: dict[str, Any], seconds: float) -> None:
    publisher = FakePublisher({"text": {}})
    await make_services(publisher).commands.call(request_of(**headers), "text", {}, **arguments)
    deadline = datetime.fromisoformat(publisher.messages[0].headers[Header.DEADLINE])
    assert (deadline - datetime.now(UTC)).total_seconds() == pytest.approx(seconds, abs=5)


async def test_malformed_timeout_publishes_nothing() -> None:
    publisher = FakePublisher({"text": {}})
    with pytest.raises(HttpProblem):
        await make_services(publisher).commands.call(request_of(x_request_timeout="soon"), "text", {})
    assert publisher.messages == []


async def test_query_omits_none_and_names_its_job() -> None:
    publisher = FakePublisher({"job.get": UNKNOWN})
    commands = make_services(publisher).commands
    with pytest.raises(ReplyFault) as raised:
        await commands.query("job.get", {"job_id": "j-1", "state": None})
    assert (raised.value.job_id, json.loads(publisher.messages[0].body)) == ("j-1", {"job_id": "j-1"})
    with pytest.raises(ReplyTimeout) as timeout:
        await commands.query("job.list", {"limit": 1}, seconds=0.01)
    assert timeout.value.job_id is None


async def test_unavailable_broker_is_publish_error() -> None:
    publisher = FakePublisher({})
    publisher.connected = False
    with pytest.raises(PublishError):
        await make_services(publisher).commands.query("job.get", {"job_id": "j-1"})


async def test_stream_yields_deltas_then_result() -> None:
    publisher = FakePublisher({"text": {"response": "ab", "deltas": 2}})
    publisher.deltas["text"] = [{"sequence": 0, "delta": "a"}, {"sequence": 1, "delta": "b"}]
    chunks = [chunk async for chunk in make_services(publisher).commands.stream(request_of(), "text", {})]
    assert [(chunk.body.get("delta"), chunk.final) for chunk in chunks] == [("a", False), ("b", False), (None, True)]
