"""The events of one job as server-sent events: those in the ledger, then live ones, until the job ends.

The id of an event is the id of its message, so that a client can resume a broken stream after it at any gateway.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from bus.amqp.messages import event_message_id
from bus.amqp.request_reply import ReplyTimeout
from contracts.event import Event
from contracts.job import JobEvents, unknown_job_message
from gateway.jobs.submission import is_terminal
from gateway.problems import HttpProblem
from gateway.services import Services
from gateway.sse import KEEPALIVE_COMMENT, RECONNECT_DELAY, escape_line_separators

FIRST_EVENT_SECONDS, FIRST_EVENT_TRIES = 0.2, 10


class JobEventStream:
    """One client's stream of one job. Each event is sent once, whether the ledger or the bus delivers it first.

    `tenant`: None for all tenants. `last_id`: of the last event that the client received.
    """

    def __init__(self, services: Services, job_id: str, tenant: str | None, last_id: str | None) -> None:
        self._services, self._job_id, self._tenant, self._last_id = services, job_id, tenant, last_id
        self._sent_ids: set[str] = set()

    async def render(self) -> AsyncGenerator[str]:
        """The text of the stream. Raises HttpProblem(404) before its first chunk when the job is unknown."""
        events = self.events()
        async with aclosing(events):
            await anext(events)
            yield RECONNECT_DELAY
            async for event in events:
                yield format_event(event) if event else KEEPALIVE_COMMENT

    async def events(self) -> AsyncGenerator[Event | None]:
        """None once the job is known, and after every GATEWAY_KEEPALIVE_SECONDS without an event. Raises HttpProblem(404) before it."""
        async with self._services.subscription.subscribe(self._job_id) as live:
            past = await self._ledger_events() or await self._wait_for_first(live)
            yield None
            for event in self._after_last_seen(past):
                yield event
            if any(is_terminal(event) for event in past):
                return
            async for live_event in self._live_events(live):
                yield live_event

    async def _ledger_events(self) -> list[Event]:
        reply = await self._services.commands.query("job.events", {"job_id": self._job_id}, tenant=self._tenant)
        return [event for event in JobEvents.model_validate(reply).events if self._is_visible(event)]

    def _is_visible(self, event: Event) -> bool:
        """Whether the caller may see the event. Another tenant's counts as none, so that its job is like an unknown one."""
        return self._tenant in (None, event.tenant)

    async def _next_live(self, live: "asyncio.Queue[Event]", seconds: float) -> Event:
        """Raises TimeoutError when no visible event arrives within `seconds`."""
        async with asyncio.timeout(seconds):
            while not self._is_visible(event := await live.get()):
                pass
            return event

    def _job_unknown(self) -> HttpProblem:
        return HttpProblem(404, "job-unknown", unknown_job_message(self._job_id), job_id=self._job_id)

    async def _wait_for_first(self, live: "asyncio.Queue[Event]") -> list[Event]:
        """The first event of a job that may have been submitted just now. Raises HttpProblem(404) when none arrives."""
        for _ in range(FIRST_EVENT_TRIES):
            try:
                return [await self._next_live(live, FIRST_EVENT_SECONDS)]
            except TimeoutError:
                if past := await self._ledger_events():
                    return past
        raise self._job_unknown()

    def _after_last_seen(self, events: list[Event]) -> list[Event]:
        """The events after `last_id`; all of them when it is not among them."""
        ids = [event_message_id(event) for event in events]
        start = ids.index(self._last_id) + 1 if self._last_id in ids else 0
        self._sent_ids.update(ids)
        return events[start:]

    async def _live_events(self, live: "asyncio.Queue[Event]") -> AsyncIterator[Event | None]:
        """Live events until the job ends; None after every keepalive interval without one.

        Then, and before the job's last event, the ledger is queried for events that were published before the subscription.
        """
        while True:
            try:
                events: list[Event | None] = [await self._next_live(live, self._services.settings.keepalive_seconds)]
            except TimeoutError:
                events = [None, *await self._missed_events()]
            if events[-1] and is_terminal(events[-1]):
                events[:0] = [event for event in await self._missed_events() if not is_terminal(event)]
            for event in events:
                if event is None or self._is_new(event):
                    yield event
                if event and is_terminal(event):
                    return

    async def _missed_events(self) -> list[Event]:
        try:
            return await self._ledger_events()
        except ReplyTimeout:
            return []

    def _is_new(self, event: Event) -> bool:
        count = len(self._sent_ids)
        self._sent_ids.add(event_message_id(event))
        return len(self._sent_ids) > count


def format_event(event: Event) -> str:
    data = escape_line_separators(event.model_dump_json(exclude_none=True))
    return f"id: {event_message_id(event)}\nevent: {event.step}.{event.kind}\ndata: {data}\n\n"
