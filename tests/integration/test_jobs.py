"""The jobs API: HTTP calls into the application, a real broker and ledger, a fake image actor."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import structlog
from structlog.contextvars import merge_contextvars
from structlog.testing import LogCapture

from actors.ledger import ACTORS
from actors.upload import ACTOR as UPLOAD
from actors.watermark import ACTOR as WATERMARK
from bus.ids import derived_id
from bus.settings import BusSettings
from contracts import broker_names
from contracts.wire import Header
from gateway.jobs.orders import ImageOrder
from gateway.jobs.submission import order_digest
from ops.local.rabbitmq import RabbitNode
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.gateway_app import JOB_ACTORS, open_gateway, order_body, parse_events, wait_until_job_ended

OpenGateway = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def gateway(bus_settings: BusSettings, store_folder: Path) -> AsyncIterator[OpenGateway]:
    """Opens any number of gateways."""
    async with AsyncExitStack() as stack:

        async def another(**settings: Any) -> httpx.AsyncClient:
            return await stack.enter_async_context(open_gateway(bus_settings, store_folder, **settings))

        yield another


async def test_job_is_accepted_and_found_by_id(gateway: OpenGateway, start_worker: StartWorker) -> None:
    """202 with links that lead to the job, its result and its file."""
    http = await gateway()
    async with start_worker(*JOB_ACTORS):
        response = await http.post("/jobs", json=order_body())
        accepted = response.json()
        assert (response.status_code, accepted["state"]) == (202, "accepted")
        assert response.headers["location"] == accepted["links"]["self"] == f"/jobs/{accepted['job_id']}"
        first = await http.get(accepted["links"]["self"])
        assert first.status_code == 200, "a job that was just accepted is never unknown"
        job = await wait_until_job_ended(http, accepted["job_id"])
        assert (job["state"], job["kind"], job["itinerary"]) == ("completed", "image_order", ["image", "watermark", "upload"])
        assert job["result"]["metadata"]["seed"] == 42
        (file,) = [file for file in job["files"] if file["name"].startswith("job-")]
        picture = await http.get(file["href"])
        assert (picture.status_code, picture.headers["content-type"], len(picture.content)) == (200, "image/png", file["size"])
        again = await http.get(file["href"], headers={"If-None-Match": picture.headers["etag"]})
        assert again.status_code == 304
        missing = await http.get(f"{accepted['links']['self']}/files/no.png")
        assert (missing.status_code, missing.json()["title"]) == (404, "file-unknown")


@pytest.mark.parametrize(("query", "headers"), [({"wait": 20}, {}), ({}, {"Prefer": "respond-async, wait=20"})])
async def test_wait_parameter_returns_result(
    gateway: OpenGateway, start_worker: StartWorker, query: dict[str, Any], headers: dict[str, str]
) -> None:
    http = await gateway()
    async with start_worker(*JOB_ACTORS):
        response = await http.post("/jobs", json=order_body(), params=query, headers=headers)
    assert (response.status_code, response.json()["state"]) == (200, "completed")
    assert response.json()["result"]["result_url"].endswith(".png")
    assert ("preference-applied" in response.headers) is bool(headers)


async def test_expired_wait_returns_id_and_counts_late_reply(gateway: OpenGateway, start_worker: StartWorker) -> None:
    http = await gateway()
    response = await http.post("/jobs", json=order_body(), params={"wait": 0.2})
    assert response.status_code == 202
    async with start_worker(*JOB_ACTORS):
        assert (await wait_until_job_ended(http, response.json()["job_id"]))["state"] == "completed"

        async def is_counted() -> bool:
            return bool((await http.get("/health")).json()["late_replies"])

        await wait_until(is_counted)


async def test_missed_deadline_is_504_with_job_id(gateway: OpenGateway, broker_client: BrokerClient) -> None:
    """The command carries the deadline, so that a worker drops it afterwards."""
    http = await gateway()
    await (await broker_client.channel.get_queue(broker_names.work_queue("image"), ensure=False)).purge()
    response = await http.post("/jobs", json=order_body(), params={"wait": 20}, headers={"X-Request-Timeout": "0.3"})
    assert (response.status_code, response.json()["title"]) == (504, "no reply in time")
    message = await broker_client.take_message(broker_names.work_queue("image"))
    assert (message.correlation_id, Header.DEADLINE in message.headers) == (response.json()["job_id"], True)


async def test_failed_job_returns_problem_with_cause(gateway: OpenGateway, start_worker: StartWorker) -> None:
    http = await gateway()
    async with start_worker(*JOB_ACTORS):
        response = await http.post("/jobs", json=order_body("fails"), params={"wait": 20})
        assert (response.status_code, response.json()["title"], response.json()["step"]) == (502, "lora-missing", "image")
        assert (await wait_until_job_ended(http, response.json()["job_id"]))["fault"]["code"] == "lora-missing"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (order_body(widht=512), "widht"),
        (order_body(lora={"uri": "s3://a/b", "skale": 1}), "skale"),
        ({"kind": "image_order"}, "prompt"),
        ({"kind": "sculpture"}, "kind"),
        ({"kind": "itinerary", "stops": []}, "stops"),
        ({"kind": "itinerary", "stops": [{"step": "image", "arguments": {"prompt": "x", "prmpt": 1}}]}, "prmpt"),
        ({"kind": "itinerary", "stops": [{"step": "image"}]}, "prompt"),
        ({"kind": "itinerary", "stops": [{"step": "validate", "gate": "analysis"}]}, "gate"),
    ],
)
async def test_invalid_order_is_rejected_with_location(gateway: OpenGateway, body: dict[str, Any], text: str) -> None:
    response = await (await gateway()).post("/jobs", json=body)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert text in response.text


async def test_custom_itinerary_runs_and_its_condition_is_applied(gateway: OpenGateway, start_worker: StartWorker) -> None:
    http = await gateway()
    stops = [{"step": "image", "arguments": {"prompt": "harbour", "width": 64, "height": 64}}, {"step": "watermark"}]
    async with start_worker(*JOB_ACTORS):
        response = await http.post("/jobs", json={"kind": "itinerary", "stops": stops, "answer": ["metadata"]}, params={"wait": 20})
    assert response.status_code == 200
    assert sorted(response.json()["result"]) == ["images", "metadata", "signature_left_out", "signature_missing", "thumbnails"]


class Test_idempotency_key:  # noqa: N801 - reads as a sentence
    async def test_same_key_and_body_is_one_job_at_every_gateway(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        """In any JSON formatting. The second caller may wait for the result, too, also after the end of the job."""
        first_gateway, second_gateway = await gateway(), await gateway()
        key = {"Idempotency-Key": uuid4().hex}
        async with start_worker(*JOB_ACTORS):
            first = await first_gateway.post("/jobs", json=order_body(), headers=key)
            second = await second_gateway.post(
                "/jobs", content=json.dumps(order_body(), indent=3), headers=key | {"Content-Type": "application/json"}
            )
            assert (first.json()["job_id"], second.status_code) == (second.json()["job_id"], 202)
            waiting_response = await second_gateway.post("/jobs", json=order_body(), headers=key, params={"wait": 20})
            ended_response = await first_gateway.post("/jobs", json=order_body(), headers=key, params={"wait": 20})
            listed = (await first_gateway.get("/jobs", params={"limit": 500})).json()["jobs"]
        assert waiting_response.status_code == ended_response.status_code == 200
        assert waiting_response.json()["result"]["result_url"] == ended_response.json()["result"]["result_url"]
        assert [job["job_id"] for job in listed].count(first.json()["job_id"]) == 1

    async def test_concurrent_submissions_are_one_job(
        self, gateway: OpenGateway, start_worker: StartWorker, broker_client: BrokerClient
    ) -> None:
        gateways = [await gateway() for _ in range(2)]
        key = {"Idempotency-Key": uuid4().hex}
        async with start_worker(*JOB_ACTORS):
            events = await broker_client.subscribe_events("image.completed.*")
            calls = [http.post("/jobs", json=order_body(), headers=key, params={"wait": 20}) for http in gateways * 4]
            responses = await asyncio.gather(*calls)
            await asyncio.sleep(0.5)
        assert {response.status_code for response in responses} == {200}
        assert len({response.json()["job_id"] for response in responses}) == 1
        completed = [events.get_nowait() for _ in range(events.qsize())]
        assert len({event["result"]["images"][0]["sha256"] for event in completed}) == 1
        assert len({event["message_id"] for event in completed}) == 1, "every copy is the same message"

    async def test_reused_key_with_another_body_is_rejected(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        http = await gateway()
        key = {"Idempotency-Key": uuid4().hex}
        async with start_worker(*JOB_ACTORS):
            first = await http.post("/jobs", json=order_body(), headers=key)
            second = await http.post("/jobs", json=order_body("forest"), headers=key)
        assert (first.status_code, second.status_code, second.json()["title"]) == (202, 422, "idempotency-key-reused")

    async def test_concurrent_different_bodies_accept_one(
        self, gateway: OpenGateway, start_worker: StartWorker, broker_client: BrokerClient
    ) -> None:
        """The body that claims the key first; the other one is rejected without being published."""
        gateways = [await gateway() for _ in range(2)]
        key = {"Idempotency-Key": uuid4().hex}
        async with start_worker(*ACTORS):
            bodies = [order_body("harbour"), order_body("forest")] * 4
            calls = [http.post("/jobs", json=body, headers=key) for http, body in zip(gateways * 4, bodies, strict=True)]
            responses = await asyncio.gather(*calls)
        accepted = {body["prompt"] for body, response in zip(bodies, responses, strict=True) if response.status_code == 202}
        titles = {response.json()["title"] for response in responses if response.status_code == 422}
        assert [response.status_code for response in responses].count(422) == 4
        assert (len(accepted), titles) == (1, {"idempotency-key-reused"})
        queue, published = await broker_client.channel.get_queue(broker_names.work_queue("image"), ensure=False), set()
        while message := await queue.get(fail=False, no_ack=True):
            published.add((message.message_id, json.loads(message.body)["prompt"]))
        assert ({prompt for _, prompt in published}, len(published)) == (accepted, 1)

    async def test_submission_is_completed_after_gateway_crash(
        self, gateway: OpenGateway, start_worker: StartWorker, broker_client: BrokerClient
    ) -> None:
        """The key is claimed, but the command was not published: the next request publishes it."""
        http = await gateway()
        key = uuid4().hex
        job_id = derived_id("idempotency-key", "", key)
        claim = {"job_id": job_id, "kind": "image_order", "sha256": order_digest(ImageOrder.model_validate(order_body()))}
        async with start_worker(*JOB_ACTORS):
            await broker_client.publish("job.claim", claim, reply_to=broker_client.reply_queue, correlation_id="c")
            assert (await broker_client.next_reply())[1]["first"] is True
            assert (await http.get(f"/jobs/{job_id}")).json()["state"] == "accepted"
            response = await http.post("/jobs", json=order_body(), headers={"Idempotency-Key": key}, params={"wait": 20})
        assert (response.status_code, response.json()["job_id"]) == (200, job_id)


async def test_gateway_shutdown_loses_no_job(bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker) -> None:
    """The job goes on; its id finds it at another gateway."""
    async with open_gateway(bus_settings, store_folder) as first:
        waiting = asyncio.create_task(first.post("/jobs", json=order_body(), params={"wait": 20}))
        job_id = (await first.post("/jobs", json=order_body())).json()["job_id"]
        waiting.cancel()
    async with open_gateway(bus_settings, store_folder) as second, start_worker(*JOB_ACTORS):
        assert (await wait_until_job_ended(second, job_id))["state"] == "completed"


async def test_queued_job_is_cancelled_and_ended_job_is_conflict(gateway: OpenGateway, start_worker: StartWorker) -> None:
    """Before its work starts. Cancelling an ended job is a conflict."""
    http = await gateway()
    job_id = (await http.post("/jobs", json=order_body())).json()["job_id"]
    async with start_worker(*ACTORS):
        assert (await http.delete(f"/jobs/{job_id}")).status_code == 202
        await asyncio.sleep(0.3)
    async with start_worker(*JOB_ACTORS):
        assert (await wait_until_job_ended(http, job_id))["state"] == "cancelled"
        again = await http.delete(f"/jobs/{job_id}")
        assert (again.status_code, again.json()["title"]) == (409, "job-ended")
        assert (await http.delete("/jobs/never")).status_code == 404


class Test_events:  # noqa: N801
    async def test_stream_sends_each_step_and_ends_with_job(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        http = await gateway()
        async with start_worker(*JOB_ACTORS):
            job_id = (await http.post("/jobs", json=order_body())).json()["job_id"]
            response = await http.get(f"/jobs/{job_id}/events")
        assert response.headers["content-type"].startswith("text/event-stream")
        events = parse_events(response.text)
        names = [event["event"] for event in events]
        assert [name for name in names if name.endswith("completed")] == [
            *("image.completed", "watermark.completed", "upload.completed", "job.completed")
        ]
        assert "image.progress" in names
        assert names.count("job.accepted") == 1
        assert len({event["id"] for event in events}) == len(events), "no event is sent twice"

    async def test_stream_resumes_after_last_event_id_at_another_gateway(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        first_gateway, second_gateway = await gateway(), await gateway()
        async with start_worker(*JOB_ACTORS):
            job_id = (await first_gateway.post("/jobs", json=order_body(), params={"wait": 20})).json()["job_id"]
            await wait_until_job_ended(first_gateway, job_id)
            all_events = parse_events((await first_gateway.get(f"/jobs/{job_id}/events")).text)
            for last in (0, len(all_events) // 2, len(all_events) - 1):
                resumed_events = parse_events(
                    (await second_gateway.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": all_events[last]["id"]})).text
                )
                assert resumed_events == all_events[last + 1 :]
            unknown = parse_events((await second_gateway.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "?"})).text)
        assert unknown == all_events

    async def test_idle_stream_sends_keepalive_and_unknown_job_is_404(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        http = await gateway(keepalive_seconds=0.2)
        async with start_worker(*ACTORS):
            job_id = (await http.post("/jobs", json=order_body())).json()["job_id"]
            stream = asyncio.create_task(http.get(f"/jobs/{job_id}/events"))
            await asyncio.sleep(1)
            async with start_worker(FAKE_IMAGE_ACTOR, WATERMARK, UPLOAD):
                text = (await stream).text
            assert (await http.get("/jobs/never/events")).status_code == 404
        assert ": keepalive" in text
        assert parse_events(text)[-1]["event"] == "job.completed"


@pytest.fixture
def log_lines() -> Iterator[list[Any]]:
    """All log entries with their bound context."""
    capture = LogCapture()
    structlog.configure(processors=[merge_contextvars, capture])
    yield capture.entries
    structlog.reset_defaults()


async def test_log_lines_carry_request_and_job_ids(log_lines: list[Any], gateway: OpenGateway, start_worker: StartWorker) -> None:
    """Those of the gateway and of every step."""
    http = await gateway()
    headers = {"X-Request-Id": "call-78", "traceparent": f"00-{'c' * 32}-{'b' * 16}-01"}
    async with start_worker(*JOB_ACTORS):
        job_id = (await http.post("/jobs", json=order_body(), params={"wait": 20}, headers=headers)).json()["job_id"]
    lines = [line for line in log_lines if job_id in (line.get("job_id"), line.get("name")) or line.get("path") == "/jobs"]
    assert {"image", "watermark", "upload"} <= {line.get("step") for line in lines}
    assert "request.answered" in {line["event"] for line in lines}
    assert {(line.get("request_id"), line.get("trace_id")) for line in lines} == {("call-78", "c" * 32)}


async def test_request_id_and_trace_are_propagated_to_messages(
    gateway: OpenGateway, start_worker: StartWorker, broker_client: BrokerClient
) -> None:
    """To the response, to the first command and to those that follow."""
    http = await gateway()
    headers = {"X-Request-Id": "call-77", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "v=1"}
    async with start_worker(*ACTORS, FAKE_IMAGE_ACTOR):
        await (await broker_client.channel.get_queue(broker_names.work_queue("watermark"), ensure=False)).purge()
        response = await http.post("/jobs", json=order_body(), headers=headers)
        message = await broker_client.take_message(broker_names.work_queue("watermark"))
    assert response.headers["x-request-id"] == "call-77"
    assert response.headers["traceparent"].startswith(f"00-{'a' * 32}-")
    assert (message.headers[Header.REQUEST_ID], message.headers[Header.TRACESTATE]) == ("call-77", "v=1")
    assert message.headers[Header.TRACEPARENT] == response.headers["traceparent"]


async def test_blocked_broker_returns_503_without_losing_job(
    rabbitmq: RabbitNode, bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker
) -> None:
    """A memory alarm blocks publishers. Afterwards, the same Idempotency-Key is the same job, which runs once."""
    short_timeout = bus_settings.model_copy(update={"publish_timeout_seconds": 1.0})
    key = {"Idempotency-Key": uuid4().hex}
    async with open_gateway(short_timeout, store_folder) as http, start_worker(*JOB_ACTORS):
        assert (await http.post("/jobs", json=order_body(), params={"wait": 20})).status_code == 200
        async with memory_alarm(rabbitmq):
            started = asyncio.get_running_loop().time()
            rejected = await http.post("/jobs", json=order_body(), headers=key)
            assert asyncio.get_running_loop().time() - started < 10
        assert (rejected.status_code, rejected.json()["title"]) == (503, "the bus is away")
        assert int(rejected.headers["retry-after"]) > 0
        async with asyncio.timeout(30):
            while (again := await http.post("/jobs", json=order_body(), headers=key, params={"wait": 20})).status_code == 503:
                await asyncio.sleep(0.2)
        assert (again.status_code, again.json()["state"]) == (200, "completed")


@asynccontextmanager
async def memory_alarm(node: RabbitNode) -> AsyncIterator[None]:
    """Raise the broker's memory alarm."""
    await asyncio.to_thread(node.rabbitmqctl, "set_vm_memory_high_watermark", "0.0001")
    try:
        await asyncio.sleep(0.5)
        yield
    finally:
        await asyncio.to_thread(node.rabbitmqctl, "set_vm_memory_high_watermark", "0.4")
