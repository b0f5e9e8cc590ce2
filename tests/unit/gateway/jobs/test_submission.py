"""Submitting jobs: messages, Idempotency-Keys, waiting for results."""

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.ids import derived_id
from contracts.event import Event, EventKind
from contracts.fault import Fault
from gateway.jobs.orders import ImageOrder
from gateway.jobs.submission import JobService, Submission, is_terminal, order_digest, recordable, uuid7, wait_for_terminal_event
from gateway.problems import HttpProblem
from gateway.services import Services
from tests.support.fake_broker import FakePublisher, FakeSubscription, make_services

ORDER = ImageOrder.model_validate({"kind": "image_order", "prompt": "harbour"})
UNKNOWN = Fault(code="job-unknown", message="unknown", step="job.get")
FAILED = Fault(code="lora-missing", message="no such weights", step="image")
KEY = "order-1"
JOB_ID = derived_id("idempotency-key", "shop", KEY)


def job(**fields: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {"job_id": JOB_ID, "state": "running", "tenant": "shop", "created_at": now, "updated_at": now} | fields


def claim(*, accepted: bool, sha256: str = order_digest(ORDER)) -> dict[str, Any]:
    return {"job_id": JOB_ID, "sha256": sha256, "first": not accepted, "accepted": accepted}


async def submit(jobs: JobService, *, wait: float = 0, seconds: float = 60, key: str | None = None) -> Submission:
    return await jobs.submit(ORDER, seconds=seconds, wait=wait, tenant="shop", caller="shop", idempotency_key=key)


def terminal_event(kind: EventKind, **fields: Any) -> Event:
    fields = {"tenant": "shop"} | fields
    return Event(kind=kind, step="job", job_id=JOB_ID, at=datetime.now(UTC), message_id="m", **fields)


def deliver(services: Services, *events: Event) -> None:
    for event in events:
        cast("FakeSubscription", services.subscription).events.put_nowait(event)


async def test_accepted_job_publishes_command_and_event() -> None:
    publisher = FakePublisher({})
    submission = await submit(make_services(publisher).jobs)
    command, event = publisher.messages
    assert (command.routing_key, command.job_id, command.reply_to) == ("image", submission.job_id, None)
    assert event.type == "event.v1"
    assert submission.result is None


async def test_awaited_result_is_returned() -> None:
    publisher = FakePublisher({"image": {"images": []}})
    assert (await submit(make_services(publisher).jobs, wait=5)).result == {"images": []}


async def test_awaited_fault_is_raised() -> None:
    with pytest.raises(ReplyFault, match="lora-missing"):
        await submit(make_services(FakePublisher({"image": FAILED})).jobs, wait=5)


async def test_expired_wait_returns_id_but_missed_deadline_is_raised() -> None:
    jobs = make_services(FakePublisher({})).jobs
    assert (await submit(jobs, wait=0.01)).result is None
    with pytest.raises(ReplyTimeout):
        await submit(jobs, wait=5, seconds=0.01)


async def test_claimed_but_unaccepted_key_publishes_with_derived_id() -> None:
    publisher = FakePublisher({"job.claim": claim(accepted=False)})
    submission = await submit(make_services(publisher).jobs, key=KEY)
    assert submission.job_id == JOB_ID
    assert [message.job_id for message in publisher.messages if message.routing_key == "image"] == [JOB_ID]
    assert publisher.commands("job.claim") == [{"job_id": JOB_ID, "kind": "image_order", "sha256": order_digest(ORDER), "tenant": "shop"}]


async def test_accepted_key_publishes_nothing() -> None:
    publisher = FakePublisher({"job.claim": claim(accepted=True)})
    assert (await submit(make_services(publisher).jobs, key=KEY)).job_id == JOB_ID
    assert publisher.commands("image") == []


async def test_reused_key_with_another_order_is_422() -> None:
    publisher = FakePublisher({"job.claim": claim(accepted=True, sha256="0" * 64)})
    with pytest.raises(HttpProblem) as raised:
        await submit(make_services(publisher).jobs, key=KEY)
    assert (raised.value.status, raised.value.title, publisher.commands("image")) == (422, "idempotency-key-reused", [])


@pytest.mark.parametrize(
    ("recorded", "event", "result"),
    [
        (job(state="completed", result={"a": 1}), None, {"a": 1}),
        (job(state="completed"), None, {}),
        (job(), terminal_event(EventKind.COMPLETED, result={"a": 2}), {"a": 2}),
        (job(), terminal_event(EventKind.CANCELLED), {}),
        (job(), None, None),
    ],
)
async def test_accepted_key_awaits_result_of_its_job(recorded: dict[str, Any], event: Event | None, result: dict[str, Any] | None) -> None:
    services = make_services(FakePublisher({"job.claim": claim(accepted=True), "job.get": recorded}))
    deliver(services, *([event] if event else []))
    assert (await submit(services.jobs, wait=0.05, key=KEY)).result == result


@pytest.mark.parametrize(
    ("recorded", "event"),
    [(job(state="failed", fault=FAILED.model_dump()), None), (job(), terminal_event(EventKind.FAILED, fault=FAILED))],
)
async def test_accepted_key_raises_fault_of_its_job(recorded: dict[str, Any], event: Event | None) -> None:
    services = make_services(FakePublisher({"job.claim": claim(accepted=True), "job.get": recorded}))
    deliver(services, *([event] if event else []))
    with pytest.raises(ReplyFault) as raised:
        await submit(services.jobs, wait=5, key=KEY)
    assert (raised.value.fault.code, raised.value.job_id) == ("lora-missing", JOB_ID)


async def test_just_accepted_job_is_awaited_in_ledger() -> None:
    publisher = FakePublisher({"job.claim": claim(accepted=False), "job.get": UNKNOWN})
    jobs = make_services(publisher).jobs
    with pytest.raises(ReplyFault):
        await jobs.get_job(JOB_ID)
    assert len(publisher.commands("job.get")) == 1, "no retry for a job that was not submitted here"
    await submit(jobs, key=KEY)
    asyncio.get_running_loop().call_later(0.05, publisher.replies.update, {"job.get": job()})
    assert (await jobs.get_job(JOB_ID)).state == "running"


@pytest.mark.parametrize("tenant", ["office", None])
async def test_end_of_another_tenants_job_is_not_awaited(tenant: str | None) -> None:
    services = make_services(FakePublisher({"job.claim": claim(accepted=True), "job.get": job()}))
    deliver(services, terminal_event(EventKind.COMPLETED, tenant=tenant, result={"a": "foreign"}))
    assert (await submit(services.jobs, wait=0.05, key=KEY)).result is None
    recorded = make_services(FakePublisher({"job.claim": claim(accepted=True), "job.get": job(tenant="office", state="completed")}))
    with pytest.raises(ReplyFault, match="job-unknown"):
        await submit(recorded.jobs, wait=0.05, key=KEY)


FOREIGN = Fault(code="generation-foreign", message="generation 7 belongs to another tenant", step="job.claim")
GENERATION_ORDER = ImageOrder.model_validate({"kind": "image_order", "prompt": "x", "generation_id": 7, "base_url": "https://b.example/x"})


async def test_generation_is_claimed_before_the_job_is_published() -> None:
    publisher = FakePublisher({"job.claim": FOREIGN})
    with pytest.raises(ReplyFault, match="generation-foreign"):
        await make_services(publisher).jobs.submit(GENERATION_ORDER, seconds=60, wait=0, tenant="shop", caller="shop", idempotency_key=None)
    (body,) = publisher.commands("job.claim")
    assert (body["generation_id"], body["backend"], body["tenant"]) == (7, "https://b.example", "shop")
    assert [message.headers["atelier-tenant"] for message in publisher.messages] == ["shop"]


@pytest.mark.parametrize("tenant", ["shop", None])
async def test_order_with_generation_is_accepted_without_ledger(tenant: str | None) -> None:
    """The webhook step decides then. Orders of the installation are not asked about."""
    publisher = FakePublisher({})
    await make_services(publisher).jobs.submit(GENERATION_ORDER, seconds=60, wait=0, tenant=tenant, caller=tenant, idempotency_key=None)
    assert len(publisher.commands("image")) == 1
    assert len(publisher.commands("job.claim")) == int(tenant is not None)


async def test_job_of_another_tenant_is_unknown() -> None:
    jobs = make_services(FakePublisher({"job.get": job()})).jobs
    assert (await jobs.get_job(JOB_ID, "shop")).tenant == (await jobs.get_job(JOB_ID)).tenant == "shop"
    with pytest.raises(ReplyFault) as raised:
        await jobs.get_job(JOB_ID, "office")
    assert (raised.value.fault.code, raised.value.job_id) == ("job-unknown", JOB_ID)


@pytest.mark.parametrize(
    ("step", "kind", "terminal"),
    [
        ("job", EventKind.COMPLETED, True),
        ("job", EventKind.FAILED, True),
        ("job", EventKind.CANCELLED, True),
        ("job", EventKind.ACCEPTED, False),
        ("image", EventKind.COMPLETED, False),
    ],
)
async def test_terminal_event_ends_wait(step: str, kind: EventKind, terminal: bool) -> None:
    event = terminal_event(kind).model_copy(update={"step": step})
    events: asyncio.Queue[Event] = asyncio.Queue()
    events.put_nowait(event)
    assert is_terminal(event) is terminal
    assert await wait_for_terminal_event(events, 0.01, "shop") == (event if terminal else None)


def test_equal_orders_have_equal_digests() -> None:
    reordered = ImageOrder.model_validate({"prompt": "harbour", "kind": "image_order"})
    other = ImageOrder.model_validate({"kind": "image_order", "prompt": "forest"})
    assert order_digest(reordered) == order_digest(ORDER) != order_digest(other)


@pytest.mark.parametrize(("length", "is_recorded"), [(10, True), (33_000, False)])
def test_long_order_is_not_recorded(length: int, is_recorded: bool) -> None:
    order = ImageOrder.model_validate({"kind": "image_order", "prompt": "x", "prompt_tags": ["y" * length]})
    assert (recordable(order) is not None) is is_recorded


def test_uuid7_is_ordered_by_time() -> None:
    first, second = uuid7(), uuid7()
    assert (first.version, first.variant) == (7, second.variant)
    assert first.int >> 80 <= second.int >> 80
