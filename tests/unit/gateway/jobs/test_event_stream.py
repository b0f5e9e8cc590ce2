"""The event stream of one job: ledger and live events merged without duplicates or gaps."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from bus.amqp.messages import event_message_id
from contracts.event import Event, EventKind
from gateway.jobs import event_stream
from gateway.jobs.event_stream import JobEventStream, format_event
from gateway.problems import HttpProblem
from gateway.services import Services
from tests.support.fake_broker import FakePublisher, FakeSubscription, make_services

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def make_event(step: str, kind: EventKind, seconds: int = 0) -> Event:
    return Event(kind=kind, step=step, job_id="j-1", at=NOW + timedelta(seconds=seconds), message_id=f"m-{step}", tenant="shop")


ACCEPTED = make_event("job", EventKind.ACCEPTED)
IMAGE = make_event("image", EventKind.COMPLETED, 1)
COMPLETED = make_event("job", EventKind.COMPLETED, 2)
ALL = [ACCEPTED, IMAGE, COMPLETED]


def services_with(ledger: list[Event], live: list[Event], **settings: Any) -> Services:
    reply = {"job_id": "j-1", "events": [event.model_dump(mode="json") for event in ledger]}
    services = make_services(FakePublisher({"job.events": reply}), keepalive_seconds=0.02, **settings)
    for event in live:
        cast("FakeSubscription", services.subscription).events.put_nowait(event)
    return services


async def stream(services: Services, tenant: str | None = "shop", last_id: str | None = None) -> list[Event | None]:
    async with asyncio.timeout(5):
        return [event async for event in JobEventStream(services, "j-1", tenant, last_id).events()]


@pytest.mark.parametrize(
    ("ledger", "live"),
    [(ALL, []), (ALL, ALL), ([ACCEPTED], [IMAGE, COMPLETED]), ([ACCEPTED, IMAGE], ALL), ([ACCEPTED, IMAGE], [COMPLETED])],
)
async def test_each_event_is_sent_once_in_order(ledger: list[Event], live: list[Event]) -> None:
    assert await stream(services_with(ledger, live)) == [None, *ALL]


async def test_event_published_before_subscription_is_fetched_before_the_end() -> None:
    services = services_with([ACCEPTED], [COMPLETED])
    publisher = cast("FakePublisher", services.publisher)
    complete = {"job_id": "j-1", "events": [event.model_dump(mode="json") for event in [ACCEPTED, IMAGE]]}
    first = publisher.replies["job.events"]
    publisher.replies["job.events"] = lambda _: first if len(publisher.messages) == 1 else complete  # type: ignore[return-value]
    assert await stream(services) == [None, *ALL]


@pytest.mark.parametrize(("last", "rest"), [(ACCEPTED, [IMAGE, COMPLETED]), (COMPLETED, []), (None, ALL)])
async def test_stream_resumes_after_last_id(last: Event | None, rest: list[Event]) -> None:
    assert await stream(services_with(ALL, []), last_id=event_message_id(last) if last else "unknown") == [None, *rest]


async def test_idle_stream_yields_keepalive() -> None:
    services = services_with([ACCEPTED], [])
    asyncio.get_running_loop().call_later(0.1, cast("FakeSubscription", services.subscription).events.put_nowait, COMPLETED)
    events = await stream(services)
    assert events[:3] == [None, ACCEPTED, None]
    assert events[-1] == COMPLETED


@pytest.mark.parametrize(("ledger", "live"), [(ALL, []), ([], ALL), ([], [])])
async def test_unknown_or_foreign_job_is_404(ledger: list[Event], live: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "FIRST_EVENT_SECONDS", 0.01)
    with pytest.raises(HttpProblem) as raised:
        await stream(services_with(ledger, live), tenant="office")
    assert (raised.value.status, raised.value.title) == (404, "job-unknown")


def of_tenant(event: Event, tenant: str | None) -> Event:
    return event.model_copy(update={"tenant": tenant, "message_id": f"foreign-{event.message_id}"})


@pytest.mark.parametrize("tenant", ["office", None])
@pytest.mark.parametrize("where", ["ledger", "live", "live first"])
async def test_event_of_another_tenant_is_never_shown(where: str, tenant: str | None) -> None:
    """A job id that two tenants use: neither the other's events nor its end."""
    foreign = [of_tenant(event, tenant) for event in (IMAGE, COMPLETED)]
    ledger = [*foreign, ACCEPTED] if where == "ledger" else [ACCEPTED] if where == "live" else []
    live = [IMAGE, COMPLETED] if where == "ledger" else [*foreign, *([ACCEPTED] if where == "live first" else []), IMAGE, COMPLETED]
    assert await stream(services_with(ledger, live)) == [None, *ALL]


async def test_unknown_and_foreign_job_take_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "FIRST_EVENT_SECONDS", 0.01)
    queries = []
    for ledger in (ALL, []):
        services = services_with(ledger, [])
        with pytest.raises(HttpProblem):
            await stream(services, tenant="office")
        queries.append(len(cast("FakePublisher", services.publisher).messages))
    assert queries[0] == queries[1] > 1


async def test_ledger_is_queried_in_the_name_of_the_tenant() -> None:
    services = services_with(ALL, [])
    await stream(services)
    assert [message.headers["atelier-tenant"] for message in cast("FakePublisher", services.publisher).messages] == ["shop"]


async def test_rendered_stream_starts_with_reconnect_delay() -> None:
    text = [chunk async for chunk in JobEventStream(services_with(ALL, []), "j-1", None, None).render()]
    assert text == ["retry: 2000\n\n", *map(format_event, ALL)]
    assert text[1].startswith(f"id: {event_message_id(ACCEPTED)}\nevent: job.accepted\ndata: {{")
