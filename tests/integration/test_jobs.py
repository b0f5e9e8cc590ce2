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
from bus.store_settings import StoreSettings
from contracts import channels
from contracts.wire import Header
from gateway.app import create_app
from gateway.orders import ImageOrder
from gateway.placing import digest
from gateway.settings import GatewaySettings
from ops.local.rabbitmq import RabbitNode
from tests.integration.conftest import Customer, Workshop, soon
from tests.painter import PAINTER

CREW = (*ACTORS, PAINTER, WATERMARK, UPLOAD)
Open = Callable[..., Awaitable[httpx.AsyncClient]]


@asynccontextmanager
async def opened(bus: BusSettings, store: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(bus, GatewaySettings.model_validate(settings), StoreSettings(store_url=store.as_uri()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client,
    ):
        yield client


@pytest.fixture
async def gateway(bus_settings: BusSettings, store_folder: Path) -> AsyncIterator[Open]:
    """Opens gateways, as many as a test wants."""
    async with AsyncExitStack() as stack:

        async def another(**settings: Any) -> httpx.AsyncClient:
            return await stack.enter_async_context(opened(bus_settings, store_folder, **settings))

        yield another


def order(prompt: str = "harbour", **more: Any) -> dict[str, Any]:
    return {"kind": "image_order", "prompt": prompt, "seed": 42, "width": 128, "height": 128, "artist": "Jane Doe"} | more


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}

    async def there() -> bool:
        response = await http.get(f"/jobs/{job_id}")
        job.update(response.json())
        return response.status_code == 200 and job["state"] in {"completed", "failed", "cancelled"}

    await soon(there, 20)
    return job


async def test_a_job_is_accepted_at_once_and_found_by_its_id(gateway: Open, workshop: Workshop) -> None:
    """202 with links that lead to the job, its result and its file."""
    http = await gateway()
    async with workshop(*CREW):
        response = await http.post("/jobs", json=order())
        answer = response.json()
        assert (response.status_code, answer["state"]) == (202, "accepted")
        assert response.headers["location"] == answer["links"]["self"] == f"/jobs/{answer['job_id']}"
        first = await http.get(answer["links"]["self"])
        assert first.status_code == 200, "a job just accepted is never unknown"
        job = await ended(http, answer["job_id"])
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
async def test_whoever_waits_gets_the_result(gateway: Open, workshop: Workshop, query: dict[str, Any], headers: dict[str, str]) -> None:
    http = await gateway()
    async with workshop(*CREW):
        response = await http.post("/jobs", json=order(), params=query, headers=headers)
    assert (response.status_code, response.json()["state"]) == (200, "completed")
    assert response.json()["result"]["result_url"].endswith(".png")
    assert ("preference-applied" in response.headers) is bool(headers)


async def test_whoever_waits_too_short_gets_the_id_and_the_late_reply_is_counted(gateway: Open, workshop: Workshop) -> None:
    http = await gateway()
    response = await http.post("/jobs", json=order(), params={"wait": 0.2})
    assert response.status_code == 202
    async with workshop(*CREW):
        assert (await ended(http, response.json()["job_id"]))["state"] == "completed"

        async def counted() -> bool:
            return bool((await http.get("/health")).json()["late_replies"])

        await soon(counted)


async def test_a_deadline_that_passes_is_a_504_that_names_the_job(gateway: Open, customer: Customer) -> None:
    """The deadline travels in the message, so that nobody begins what nobody wants."""
    http = await gateway()
    await (await customer.channel.get_queue(channels.work_queue("image"), ensure=False)).purge()
    response = await http.post("/jobs", json=order(), params={"wait": 20}, headers={"X-Request-Timeout": "0.3"})
    assert (response.status_code, response.json()["title"]) == (504, "no reply in time")
    letter = await customer.letter_in(channels.work_queue("image"))
    assert (letter.correlation_id, Header.DEADLINE in letter.headers) == (response.json()["job_id"], True)


async def test_a_job_that_fails_is_a_problem_with_its_cause(gateway: Open, workshop: Workshop) -> None:
    http = await gateway()
    async with workshop(*CREW):
        response = await http.post("/jobs", json=order("fails"), params={"wait": 20})
        assert (response.status_code, response.json()["title"], response.json()["step"]) == (502, "lora-missing", "image")
        assert (await ended(http, response.json()["job_id"]))["fault"]["code"] == "lora-missing"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (order(widht=512), "widht"),
        (order(lora={"uri": "s3://a/b", "skale": 1}), "skale"),
        ({"kind": "image_order"}, "prompt"),
        ({"kind": "sculpture"}, "kind"),
        ({"kind": "itinerary", "stops": []}, "stops"),
        ({"kind": "itinerary", "stops": [{"step": "image", "arguments": {"prompt": "x", "prmpt": 1}}]}, "prmpt"),
        ({"kind": "itinerary", "stops": [{"step": "image"}]}, "prompt"),
        ({"kind": "itinerary", "stops": [{"step": "validate", "gate": "analysis"}]}, "gate"),
        ({"kind": "itinerary", "stops": [{"step": "consult"}], "variables": {"x": "a\u0000b"}}, "NUL"),
    ],
)
async def test_a_bad_order_is_refused_with_the_place_of_the_fault(gateway: Open, body: dict[str, Any], said: str) -> None:
    response = await (await gateway()).post("/jobs", json=body)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert said in response.text


async def test_an_itinerary_of_ones_own_runs_and_its_gate_holds(gateway: Open, workshop: Workshop) -> None:
    http = await gateway()
    stops = [{"step": "image", "arguments": {"prompt": "harbour", "width": 64, "height": 64}}, {"step": "watermark"}]
    async with workshop(*CREW):
        response = await http.post("/jobs", json={"kind": "itinerary", "stops": stops, "answer": ["metadata"]}, params={"wait": 20})
    assert response.status_code == 200
    assert sorted(response.json()["result"]) == ["images", "metadata"]


class Test_idempotency_key:  # noqa: N801 - reads as a sentence
    async def test_same_key_and_body_is_the_same_job_at_every_gateway(self, gateway: Open, workshop: Workshop) -> None:
        """Spelling does not count; the second caller may wait for the end as well, also when all is over."""
        one, other = await gateway(), await gateway()
        key = {"Idempotency-Key": uuid4().hex}
        async with workshop(*CREW):
            first = await one.post("/jobs", json=order(), headers=key)
            second = await other.post("/jobs", content=json.dumps(order(), indent=3), headers=key | {"Content-Type": "application/json"})
            assert (first.json()["job_id"], second.status_code) == (second.json()["job_id"], 202)
            waited = await other.post("/jobs", json=order(), headers=key, params={"wait": 20})
            over = await one.post("/jobs", json=order(), headers=key, params={"wait": 20})
            listed = (await one.get("/jobs", params={"limit": 500})).json()["jobs"]
        assert waited.status_code == over.status_code == 200
        assert waited.json()["result"]["result_url"] == over.json()["result"]["result_url"]
        assert [job["job_id"] for job in listed].count(first.json()["job_id"]) == 1

    async def test_many_at_once_are_one_job(self, gateway: Open, workshop: Workshop, customer: Customer) -> None:
        gateways = [await gateway() for _ in range(2)]
        key = {"Idempotency-Key": uuid4().hex}
        async with workshop(*CREW):
            events = await customer.events("image.completed.*")
            calls = [http.post("/jobs", json=order(), headers=key, params={"wait": 20}) for http in gateways * 4]
            answers = await asyncio.gather(*calls)
            await asyncio.sleep(0.5)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["job_id"] for answer in answers}) == 1
        told = [events.get_nowait() for _ in range(events.qsize())]
        assert len({event["result"]["images"][0]["sha256"] for event in told}) == 1
        assert len({event["message_id"] for event in told}) == 1, "every copy is the same message"

    async def test_another_body_is_refused(self, gateway: Open, workshop: Workshop) -> None:
        http = await gateway()
        key = {"Idempotency-Key": uuid4().hex}
        async with workshop(*CREW):
            first = await http.post("/jobs", json=order(), headers=key)
            second = await http.post("/jobs", json=order("forest"), headers=key)
        assert (first.status_code, second.status_code, second.json()["title"]) == (202, 422, "idempotency-key-reused")

    async def test_of_two_bodies_at_once_one_is_the_job(self, gateway: Open, workshop: Workshop, customer: Customer) -> None:
        """Whichever claims the key first; every copy of the other is refused, and never becomes a message."""
        gateways = [await gateway() for _ in range(2)]
        key = {"Idempotency-Key": uuid4().hex}
        async with workshop(*ACTORS):
            bodies = [order("harbour"), order("forest")] * 4
            calls = [http.post("/jobs", json=body, headers=key) for http, body in zip(gateways * 4, bodies, strict=True)]
            answers = await asyncio.gather(*calls)
        taken = {body["prompt"] for body, answer in zip(bodies, answers, strict=True) if answer.status_code == 202}
        refused = {answer.json()["title"] for answer in answers if answer.status_code == 422}
        assert [answer.status_code for answer in answers].count(422) == 4
        assert (len(taken), refused) == (1, {"idempotency-key-reused"})
        queue, sent = await customer.channel.get_queue(channels.work_queue("image"), ensure=False), set()
        while letter := await queue.get(fail=False, no_ack=True):
            sent.add((letter.message_id, json.loads(letter.body)["prompt"]))
        assert ({prompt for _, prompt in sent}, len(sent)) == (taken, 1)

    async def test_a_gateway_that_died_between_key_and_command_is_made_good(
        self, gateway: Open, workshop: Workshop, customer: Customer
    ) -> None:
        """The key is taken, the command was never sent: the next call sends it."""
        http = await gateway()
        key = uuid4().hex
        job_id = derived_id("idempotency-key", "", key)
        claim = {"job_id": job_id, "kind": "image_order", "sha256": digest(ImageOrder.model_validate(order()))}
        async with workshop(*CREW):
            await customer.send("job.claim", claim, reply_to=customer.reply_queue, correlation_id="c")
            assert (await customer.reply())[1]["first"] is True
            assert (await http.get(f"/jobs/{job_id}")).json()["state"] == "accepted"
            response = await http.post("/jobs", json=order(), headers={"Idempotency-Key": key}, params={"wait": 20})
        assert (response.status_code, response.json()["job_id"]) == (200, job_id)


async def test_a_gateway_that_stops_loses_no_job(bus_settings: BusSettings, store_folder: Path, workshop: Workshop) -> None:
    """The job goes on; the client asks another gateway by the id it was given."""
    async with opened(bus_settings, store_folder) as first:
        waiting = asyncio.create_task(first.post("/jobs", json=order(), params={"wait": 20}))
        job_id = (await first.post("/jobs", json=order())).json()["job_id"]
        waiting.cancel()
    async with opened(bus_settings, store_folder) as second, workshop(*CREW):
        assert (await ended(second, job_id))["state"] == "completed"


async def test_a_job_is_cancelled(gateway: Open, workshop: Workshop) -> None:
    """Before its work began; and what has ended is a conflict."""
    http = await gateway()
    job_id = (await http.post("/jobs", json=order())).json()["job_id"]
    async with workshop(*ACTORS):
        assert (await http.delete(f"/jobs/{job_id}")).status_code == 202
        await asyncio.sleep(0.3)
    async with workshop(*CREW):
        assert (await ended(http, job_id))["state"] == "cancelled"
        over = await http.delete(f"/jobs/{job_id}")
        assert (over.status_code, over.json()["title"]) == (409, "job-ended")
        assert (await http.delete("/jobs/never")).status_code == 404


def events_in(text: str) -> list[dict[str, str]]:
    """Server-sent events as a browser reads them."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return [dict(line.split(": ", 1) for line in block) for block in blocks if any(line.startswith("data: ") for line in block)]


class Test_events:  # noqa: N801
    async def test_the_stream_tells_each_step_and_ends_with_the_job(self, gateway: Open, workshop: Workshop) -> None:
        http = await gateway()
        async with workshop(*CREW):
            job_id = (await http.post("/jobs", json=order())).json()["job_id"]
            response = await http.get(f"/jobs/{job_id}/events")
        assert response.headers["content-type"].startswith("text/event-stream")
        told = events_in(response.text)
        names = [event["event"] for event in told]
        assert [name for name in names if name.endswith("completed")] == [
            *("image.completed", "watermark.completed", "upload.completed", "job.completed")
        ]
        assert "image.progress" in names
        assert names.count("job.accepted") == 1
        assert len({event["id"] for event in told}) == len(told), "nothing is told twice"

    async def test_a_stream_goes_on_after_the_last_event_at_another_gateway(self, gateway: Open, workshop: Workshop) -> None:
        one, other = await gateway(), await gateway()
        async with workshop(*CREW):
            job_id = (await one.post("/jobs", json=order(), params={"wait": 20})).json()["job_id"]
            await ended(one, job_id)
            whole = events_in((await one.get(f"/jobs/{job_id}/events")).text)
            for seen in (0, len(whole) // 2, len(whole) - 1):
                rest = events_in((await other.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": whole[seen]["id"]})).text)
                assert rest == whole[seen + 1 :]
            unknown = events_in((await other.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "?"})).text)
        assert unknown == whole

    async def test_a_quiet_stream_says_that_it_lives_and_an_unknown_job_is_a_404(self, gateway: Open, workshop: Workshop) -> None:
        http = await gateway(keepalive_seconds=0.2)
        async with workshop(*ACTORS):
            job_id = (await http.post("/jobs", json=order())).json()["job_id"]
            stream = asyncio.create_task(http.get(f"/jobs/{job_id}/events"))
            await asyncio.sleep(1)
            async with workshop(PAINTER, WATERMARK, UPLOAD):
                text = (await stream).text
            assert (await http.get("/jobs/never/events")).status_code == 404
        assert ": keepalive" in text
        assert events_in(text)[-1]["event"] == "job.completed"


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """Every log line, as it would be written."""
    capture = LogCapture()
    structlog.configure(processors=[merge_contextvars, capture])
    yield capture.entries
    structlog.reset_defaults()


async def test_every_log_line_of_a_request_and_of_its_job_bears_their_names(logged: list[Any], gateway: Open, workshop: Workshop) -> None:
    """At the gateway and at every step."""
    http = await gateway()
    names = {"X-Request-Id": "call-78", "traceparent": f"00-{'c' * 32}-{'b' * 16}-01"}
    async with workshop(*CREW):
        job_id = (await http.post("/jobs", json=order(), params={"wait": 20}, headers=names)).json()["job_id"]
    lines = [line for line in logged if job_id in (line.get("job_id"), line.get("name")) or line.get("path") == "/jobs"]
    assert {"image", "watermark", "upload"} <= {line.get("step") for line in lines}
    assert "request.answered" in {line["event"] for line in lines}
    assert {(line.get("request_id"), line.get("trace_id")) for line in lines} == {("call-78", "c" * 32)}


async def test_the_requests_id_and_trace_travel_with_every_message(gateway: Open, workshop: Workshop, customer: Customer) -> None:
    """In and out over HTTP, on the first command and on those that follow."""
    http = await gateway()
    names = {"X-Request-Id": "call-77", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "v=1"}
    async with workshop(*ACTORS, PAINTER):
        await (await customer.channel.get_queue(channels.work_queue("watermark"), ensure=False)).purge()
        response = await http.post("/jobs", json=order(), headers=names)
        letter = await customer.letter_in(channels.work_queue("watermark"))
    assert response.headers["x-request-id"] == "call-77"
    assert response.headers["traceparent"].startswith(f"00-{'a' * 32}-")
    assert (letter.headers[Header.REQUEST_ID], letter.headers[Header.TRACESTATE]) == ("call-77", "v=1")
    assert letter.headers[Header.TRACEPARENT] == response.headers["traceparent"]


async def test_a_broker_that_takes_nothing_is_a_503_in_time_and_not_a_lost_job(
    rabbitmq: RabbitNode, bus_settings: BusSettings, store_folder: Path, workshop: Workshop
) -> None:
    """A memory alarm blocks whoever publishes. The same key afterwards is the same job, done once."""
    impatient = bus_settings.model_copy(update={"publish_timeout_seconds": 1.0})
    key = {"Idempotency-Key": uuid4().hex}
    async with opened(impatient, store_folder) as http, workshop(*CREW):
        assert (await http.post("/jobs", json=order(), params={"wait": 20})).status_code == 200
        async with memory_alarm(rabbitmq):
            begun = asyncio.get_running_loop().time()
            refused = await http.post("/jobs", json=order(), headers=key)
            assert asyncio.get_running_loop().time() - begun < 10
        assert (refused.status_code, refused.json()["title"]) == (503, "the bus is away")
        assert int(refused.headers["retry-after"]) > 0
        async with asyncio.timeout(30):
            while (again := await http.post("/jobs", json=order(), headers=key, params={"wait": 20})).status_code == 503:
                await asyncio.sleep(0.2)
        assert (again.status_code, again.json()["state"]) == (200, "completed")


@asynccontextmanager
async def memory_alarm(node: RabbitNode) -> AsyncIterator[None]:
    """The broker is made to believe that its memory is full."""
    await asyncio.to_thread(node.control, "set_vm_memory_high_watermark", "0.0001")
    try:
        await asyncio.sleep(0.5)
        yield
    finally:
        await asyncio.to_thread(node.control, "set_vm_memory_high_watermark", "0.4")
