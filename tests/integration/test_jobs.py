"""Jobs over HTTP: real calls into the application, a real broker and ledger, and a painter in place of the model."""

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
from bus.storage.settings import StoreSettings
from contracts import broker_names
from contracts.wire import Header
from gateway.app import create_app
from gateway.jobs.orders import ImageOrder
from gateway.jobs.submission import order_digest
from gateway.settings import GatewaySettings
from ops.local.rabbitmq import RabbitNode
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR

JOB_ACTORS = (*ACTORS, FAKE_IMAGE_ACTOR, WATERMARK, UPLOAD)
OpenGateway = Callable[..., Awaitable[httpx.AsyncClient]]


@asynccontextmanager
async def open_gateway(bus: BusSettings, store: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(bus, GatewaySettings.model_validate(settings), StoreSettings(store_url=store.as_uri()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client,
    ):
        yield client


@pytest.fixture
async def gateway(bus_settings: BusSettings, store_folder: Path) -> AsyncIterator[OpenGateway]:
    """Opens gateways, as many as a test wants."""
    async with AsyncExitStack() as stack:

        async def another(**settings: Any) -> httpx.AsyncClient:
            return await stack.enter_async_context(open_gateway(bus_settings, store_folder, **settings))

        yield another


def order_body(prompt: str = "harbour", **more: Any) -> dict[str, Any]:
    return {"kind": "image_order", "prompt": prompt, "seed": 42, "width": 128, "height": 128, "artist": "Jane Doe"} | more


async def wait_until_job_ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}

    async def there() -> bool:
        response = await http.get(f"/jobs/{job_id}")
        job.update(response.json())
        return response.status_code == 200 and job["state"] in {"completed", "failed", "cancelled"}

    await wait_until(there, 20)
    return job


async def test_job_is_accepted_and_found_by_id(gateway: OpenGateway, start_worker: StartWorker) -> None:
    """202 with links that lead to the job, its result and its file."""
    http = await gateway()
    async with start_worker(*JOB_ACTORS):
        response = await http.post("/jobs", json=order_body())
        answer = response.json()
        assert (response.status_code, answer["state"]) == (202, "accepted")
        assert response.headers["location"] == answer["links"]["self"] == f"/jobs/{answer['job_id']}"
        first = await http.get(answer["links"]["self"])
        assert first.status_code == 200, "a job just accepted is never unknown"
        job = await wait_until_job_ended(http, answer["job_id"])
        assert (job["state"], job["kind"], job["itinerary"]) == ("completed", "image_order", ["image", "watermark", "upload"])
        assert job["result"]["metadata"]["seed"] == 42
        (file,) = [file for file in job["files"] if file["name"].startswith("job-")]
        picture = await http.get(file["href"])
        assert (picture.status_code, picture.headers["content-type"], len(picture.content)) == (200, "image/png", file["size"])
        again = await http.get(file["href"], headers={"If-None-Match": picture.headers["etag"]})
        assert again.status_code == 304
        missing = await http.get(f"{answer['links']['self']}/files/no.png")
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

        async def counted() -> bool:
            return bool((await http.get("/health")).json()["late_replies"])

        await wait_until(counted)


async def test_a_deadline_that_passes_is_a_504_that_names_the_job(gateway: OpenGateway, broker_client: BrokerClient) -> None:
    """The deadline travels in the message, so that nobody begins what nobody wants."""
    http = await gateway()
    await (await broker_client.channel.get_queue(broker_names.work_queue("image"), ensure=False)).purge()
    response = await http.post("/jobs", json=order_body(), params={"wait": 20}, headers={"X-Request-Timeout": "0.3"})
    assert (response.status_code, response.json()["title"]) == (504, "no reply in time")
    letter = await broker_client.take_message(broker_names.work_queue("image"))
    assert (letter.correlation_id, Header.DEADLINE in letter.headers) == (response.json()["job_id"], True)


async def test_a_job_that_fails_is_a_problem_with_its_cause(gateway: OpenGateway, start_worker: StartWorker) -> None:
    http = await gateway()
    async with start_worker(*JOB_ACTORS):
        response = await http.post("/jobs", json=order_body("fails"), params={"wait": 20})
        assert (response.status_code, response.json()["title"], response.json()["step"]) == (502, "lora-missing", "image")
        assert (await wait_until_job_ended(http, response.json()["job_id"]))["fault"]["code"] == "lora-missing"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (order_body(widht=512), "widht"),
        (order_body(lora={"uri": "s3://a/b", "skale": 1}), "skale"),
        ({"kind": "image_order"}, "prompt"),
        ({"kind": "sculpture"}, "kind"),
        ({"kind": "itinerary", "stops": []}, "stops"),
        ({"kind": "itinerary", "stops": [{"step": "image", "arguments": {"prompt": "x", "prmpt": 1}}]}, "prmpt"),
        ({"kind": "itinerary", "stops": [{"step": "image"}]}, "prompt"),
        ({"kind": "itinerary", "stops": [{"step": "validate", "gate": "analysis"}]}, "gate"),
        ({"kind": "itinerary", "stops": [{"step": "consult"}], "variables": {"x": "a\u0000b"}}, "NUL"),
    ],
)
async def test_a_bad_order_is_refused_with_the_place_of_the_fault(gateway: OpenGateway, body: dict[str, Any], said: str) -> None:
    response = await (await gateway()).post("/jobs", json=body)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert said in response.text


async def test_custom_itinerary_runs_and_its_condition_is_applied(gateway: OpenGateway, start_worker: StartWorker) -> None:
    http = await gateway()
    stops = [{"step": "image", "arguments": {"prompt": "harbour", "width": 64, "height": 64}}, {"step": "watermark"}]
    async with start_worker(*JOB_ACTORS):
        response = await http.post("/jobs", json={"kind": "itinerary", "stops": stops, "answer": ["metadata"]}, params={"wait": 20})
    assert response.status_code == 200
    assert sorted(response.json()["result"]) == ["images", "metadata"]


class Test_idempotency_key:  # noqa: N801 - reads as a sentence
    async def test_same_key_and_body_is_the_same_job_at_every_gateway(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        """Spelling does not count; the second caller may wait for the end as well, also when all is over."""
        one, other = await gateway(), await gateway()
        key = {"Idempotency-Key": uuid4().hex}
        async with start_worker(*JOB_ACTORS):
            first = await one.post("/jobs", json=order_body(), headers=key)
            second = await other.post(
                "/jobs", content=json.dumps(order_body(), indent=3), headers=key | {"Content-Type": "application/json"}
            )
            assert (first.json()["job_id"], second.status_code) == (second.json()["job_id"], 202)
            waited = await other.post("/jobs", json=order_body(), headers=key, params={"wait": 20})
            over = await one.post("/jobs", json=order_body(), headers=key, params={"wait": 20})
            listed = (await one.get("/jobs", params={"limit": 500})).json()["jobs"]
        assert waited.status_code == over.status_code == 200
        assert waited.json()["result"]["result_url"] == over.json()["result"]["result_url"]
        assert [job["job_id"] for job in listed].count(first.json()["job_id"]) == 1

    async def test_concurrent_submissions_are_one_job(
        self, gateway: OpenGateway, start_worker: StartWorker, broker_client: BrokerClient
    ) -> None:
        gateways = [await gateway() for _ in range(2)]
        key = {"Idempotency-Key": uuid4().hex}
        async with start_worker(*JOB_ACTORS):
            events = await broker_client.subscribe_events("image.completed.*")
            calls = [http.post("/jobs", json=order_body(), headers=key, params={"wait": 20}) for http in gateways * 4]
            answers = await asyncio.gather(*calls)
            await asyncio.sleep(0.5)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["job_id"] for answer in answers}) == 1
        told = [events.get_nowait() for _ in range(events.qsize())]
        assert len({event["result"]["images"][0]["sha256"] for event in told}) == 1
        assert len({event["message_id"] for event in told}) == 1, "every copy is the same message"

    async def test_another_body_is_refused(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        http = await gateway()
        key = {"Idempotency-Key": uuid4().hex}
        async with start_worker(*JOB_ACTORS):
            first = await http.post("/jobs", json=order_body(), headers=key)
            second = await http.post("/jobs", json=order_body("forest"), headers=key)
        assert (first.status_code, second.status_code, second.json()["title"]) == (202, 422, "idempotency-key-reused")

    async def test_concurrent_different_bodies_accept_one(
        self, gateway: OpenGateway, start_worker: StartWorker, broker_client: BrokerClient
    ) -> None:
        """Whichever claims the key first; every copy of the other is refused, and never becomes a message."""
        gateways = [await gateway() for _ in range(2)]
        key = {"Idempotency-Key": uuid4().hex}
        async with start_worker(*ACTORS):
            bodies = [order_body("harbour"), order_body("forest")] * 4
            calls = [http.post("/jobs", json=body, headers=key) for http, body in zip(gateways * 4, bodies, strict=True)]
            answers = await asyncio.gather(*calls)
        taken = {body["prompt"] for body, answer in zip(bodies, answers, strict=True) if answer.status_code == 202}
        refused = {answer.json()["title"] for answer in answers if answer.status_code == 422}
        assert [answer.status_code for answer in answers].count(422) == 4
        assert (len(taken), refused) == (1, {"idempotency-key-reused"})
        queue, sent = await broker_client.channel.get_queue(broker_names.work_queue("image"), ensure=False), set()
        while letter := await queue.get(fail=False, no_ack=True):
            sent.add((letter.message_id, json.loads(letter.body)["prompt"]))
        assert ({prompt for _, prompt in sent}, len(sent)) == (taken, 1)

    async def test_submission_is_completed_after_gateway_crash(
        self, gateway: OpenGateway, start_worker: StartWorker, broker_client: BrokerClient
    ) -> None:
        """The key is taken, the command was never sent: the next call sends it."""
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
    """The job goes on; the client asks another gateway by the id it was given."""
    async with open_gateway(bus_settings, store_folder) as first:
        waiting = asyncio.create_task(first.post("/jobs", json=order_body(), params={"wait": 20}))
        job_id = (await first.post("/jobs", json=order_body())).json()["job_id"]
        waiting.cancel()
    async with open_gateway(bus_settings, store_folder) as second, start_worker(*JOB_ACTORS):
        assert (await wait_until_job_ended(second, job_id))["state"] == "completed"


async def test_a_job_is_cancelled(gateway: OpenGateway, start_worker: StartWorker) -> None:
    """Before its work began; and what has ended is a conflict."""
    http = await gateway()
    job_id = (await http.post("/jobs", json=order_body())).json()["job_id"]
    async with start_worker(*ACTORS):
        assert (await http.delete(f"/jobs/{job_id}")).status_code == 202
        await asyncio.sleep(0.3)
    async with start_worker(*JOB_ACTORS):
        assert (await wait_until_job_ended(http, job_id))["state"] == "cancelled"
        over = await http.delete(f"/jobs/{job_id}")
        assert (over.status_code, over.json()["title"]) == (409, "job-ended")
        assert (await http.delete("/jobs/never")).status_code == 404


def parse_events(text: str) -> list[dict[str, str]]:
    """Server-sent events as a browser reads them."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return [dict(line.split(": ", 1) for line in block) for block in blocks if any(line.startswith("data: ") for line in block)]


class Test_events:  # noqa: N801
    async def test_stream_sends_each_step_and_ends_with_job(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        http = await gateway()
        async with start_worker(*JOB_ACTORS):
            job_id = (await http.post("/jobs", json=order_body())).json()["job_id"]
            response = await http.get(f"/jobs/{job_id}/events")
        assert response.headers["content-type"].startswith("text/event-stream")
        told = parse_events(response.text)
        names = [event["event"] for event in told]
        assert [name for name in names if name.endswith("completed")] == [
            *("image.completed", "watermark.completed", "upload.completed", "job.completed")
        ]
        assert "image.progress" in names
        assert names.count("job.accepted") == 1
        assert len({event["id"] for event in told}) == len(told), "nothing is told twice"

    async def test_stream_resumes_after_last_event_id_at_another_gateway(self, gateway: OpenGateway, start_worker: StartWorker) -> None:
        one, other = await gateway(), await gateway()
        async with start_worker(*JOB_ACTORS):
            job_id = (await one.post("/jobs", json=order_body(), params={"wait": 20})).json()["job_id"]
            await wait_until_job_ended(one, job_id)
            whole = parse_events((await one.get(f"/jobs/{job_id}/events")).text)
            for seen in (0, len(whole) // 2, len(whole) - 1):
                rest = parse_events((await other.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": whole[seen]["id"]})).text)
                assert rest == whole[seen + 1 :]
            unknown = parse_events((await other.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "?"})).text)
        assert unknown == whole

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
    """Every log line, as it would be written."""
    capture = LogCapture()
    structlog.configure(processors=[merge_contextvars, capture])
    yield capture.entries
    structlog.reset_defaults()


async def test_log_lines_carry_request_and_job_ids(log_lines: list[Any], gateway: OpenGateway, start_worker: StartWorker) -> None:
    """At the gateway and at every step."""
    http = await gateway()
    names = {"X-Request-Id": "call-78", "traceparent": f"00-{'c' * 32}-{'b' * 16}-01"}
    async with start_worker(*JOB_ACTORS):
        job_id = (await http.post("/jobs", json=order_body(), params={"wait": 20}, headers=names)).json()["job_id"]
    lines = [line for line in log_lines if job_id in (line.get("job_id"), line.get("name")) or line.get("path") == "/jobs"]
    assert {"image", "watermark", "upload"} <= {line.get("step") for line in lines}
    assert "request.answered" in {line["event"] for line in lines}
    assert {(line.get("request_id"), line.get("trace_id")) for line in lines} == {("call-78", "c" * 32)}


async def test_request_id_and_trace_are_propagated_to_messages(
    gateway: OpenGateway, start_worker: StartWorker, broker_client: BrokerClient
) -> None:
    """In and out over HTTP, on the first command and on those that follow."""
    http = await gateway()
    names = {"X-Request-Id": "call-77", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "v=1"}
    async with start_worker(*ACTORS, FAKE_IMAGE_ACTOR):
        await (await broker_client.channel.get_queue(broker_names.work_queue("watermark"), ensure=False)).purge()
        response = await http.post("/jobs", json=order_body(), headers=names)
        letter = await broker_client.take_message(broker_names.work_queue("watermark"))
    assert response.headers["x-request-id"] == "call-77"
    assert response.headers["traceparent"].startswith(f"00-{'a' * 32}-")
    assert (letter.headers[Header.REQUEST_ID], letter.headers[Header.TRACESTATE]) == ("call-77", "v=1")
    assert letter.headers[Header.TRACEPARENT] == response.headers["traceparent"]


async def test_blocked_broker_returns_503_without_losing_job(
    rabbitmq: RabbitNode, bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker
) -> None:
    """A memory alarm blocks whoever publishes. The same key afterwards is the same job, done once."""
    impatient = bus_settings.model_copy(update={"publish_timeout_seconds": 1.0})
    key = {"Idempotency-Key": uuid4().hex}
    async with open_gateway(impatient, store_folder) as http, start_worker(*JOB_ACTORS):
        assert (await http.post("/jobs", json=order_body(), params={"wait": 20})).status_code == 200
        async with memory_alarm(rabbitmq):
            begun = asyncio.get_running_loop().time()
            refused = await http.post("/jobs", json=order_body(), headers=key)
            assert asyncio.get_running_loop().time() - begun < 10
        assert (refused.status_code, refused.json()["title"]) == (503, "the bus is away")
        assert int(refused.headers["retry-after"]) > 0
        async with asyncio.timeout(30):
            while (again := await http.post("/jobs", json=order_body(), headers=key, params={"wait": 20})).status_code == 503:
                await asyncio.sleep(0.2)
        assert (again.status_code, again.json()["state"]) == (200, "completed")


@asynccontextmanager
async def memory_alarm(node: RabbitNode) -> AsyncIterator[None]:
    """The broker is made to believe that its memory is full."""
    await asyncio.to_thread(node.rabbitmqctl, "set_vm_memory_high_watermark", "0.0001")
    try:
        await asyncio.sleep(0.5)
        yield
    finally:
        await asyncio.to_thread(node.rabbitmqctl, "set_vm_memory_high_watermark", "0.4")
