"""What happens to one job, as server-sent events: what the ledger has, then what comes, until the job ends.

An event's id is that of the message that carried it, so a stream that broke is resumed after it at any gateway.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from bus.amqp.request_reply import ReplyTimeout
from bus.amqp.subscriptions import JobSubscription, event_message_id
from contracts.event import Event
from contracts.job import JobEvents, unknown_job_message
from gateway.jobs.submission import JobService, is_terminal
from gateway.problems import HttpProblem
from gateway.sse import KEEPALIVE_COMMENT, RECONNECT_DELAY

FIRST_EVENT_SECONDS, FIRST_EVENT_TRIES = 0.2, 10


class JobEventStream:
    """One client's view of one job. Each event is told once, whether the ledger or the bus has it first."""

    def __init__(self, jobs: JobService, job_id: str, tenant: str | None, last_id: str | None, keepalive_seconds: float) -> None:
        self._jobs, self._job_id, self._tenant, self._last_id = jobs, job_id, tenant, last_id
        self._keepalive_seconds = keepalive_seconds
        self._sent_ids: set[str] = set()

    async def render(self, subscription: JobSubscription) -> AsyncGenerator[str]:
        """Yields the text of the stream; its first piece comes when the job is known. Raises Refused(404) before it."""
        events = self.events(subscription)
        async with aclosing(events):
            await anext(events)
            yield RECONNECT_DELAY
            async for event in events:
                yield format_event(event) if event else KEEPALIVE_COMMENT

    async def events(self, subscription: JobSubscription) -> AsyncGenerator[Event | None]:
        """None when the job is known, and whenever nothing came for a while. Raises Refused(404) before the first."""
        async with subscription.subscribe(self._job_id) as heard:
            past = await self._ledger_events() or await self._wait_for_first(heard)
            yield None
            for event in self._after_last_seen(past):
                yield event
            if any(is_terminal(event) for event in past):
                return
            async for coming in self._live_events(heard):
                yield coming

    async def _ledger_events(self) -> list[Event]:
        return [
            self._require_tenant(event)
            for event in JobEvents.model_validate(await self._jobs.query("job.events", job_id=self._job_id)).events
        ]

    def _require_tenant(self, event: Event) -> Event:
        """Raises Refused(404) for another tenant's event."""
        if self._tenant in (None, event.tenant):
            return event
        raise self._job_unknown()

    def _job_unknown(self) -> HttpProblem:
        return HttpProblem(404, "job-unknown", unknown_job_message(self._job_id), job_id=self._job_id)

    async def _wait_for_first(self, live: "asyncio.Queue[Event]") -> list[Event]:
        """A job just sent may not be in the ledger yet: whichever tells of it first. Raises Refused(404) when neither does."""
        for _ in range(FIRST_EVENT_TRIES):
            try:
                return [self._require_tenant(await asyncio.wait_for(live.get(), FIRST_EVENT_SECONDS))]
            except TimeoutError:
                if past := await self._ledger_events():
                    return past
        raise self._job_unknown()

    def _after_last_seen(self, events: list[Event]) -> list[Event]:
        """What the client has not seen, when it says what it saw last; an id that is not there means everything."""
        ids = [event_message_id(event) for event in events]
        seen = ids.index(self._last_id) + 1 if self._last_id in ids else 0
        self._sent_ids.update(ids)
        return events[seen:]

    async def _live_events(self, live: "asyncio.Queue[Event]") -> AsyncIterator[Event | None]:
        """Events as they come; None when there was nothing for a while.

        Then, and before the job's end, the ledger is asked for what was on its way to it when this stream began.
        """
        while True:
            try:
                events: list[Event | None] = [await asyncio.wait_for(live.get(), self._keepalive_seconds)]
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
        known = len(self._sent_ids)
        self._sent_ids.add(event_message_id(event))
        return len(self._sent_ids) > known


def format_event(event: Event) -> str:
    return f"id: {event_message_id(event)}\nevent: {event.step}.{event.kind}\ndata: {event.model_dump_json(exclude_none=True)}\n\n"
