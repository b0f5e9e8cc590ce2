"""What happens to one job, as server-sent events: what the ledger has, then what comes, until the job ends.

An event's id is that of the message that carried it, so a stream that broke is resumed after it at any gateway.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from bus.events import Follower, event_id
from bus.request_reply import ReplyTimeout
from contracts.event import Event
from contracts.job import JobEvents, unknown
from gateway.placing import Counter, ends
from gateway.problems import Refused

RECONNECT = "retry: 2000\n\n"
KEEPALIVE = ": keepalive\n\n"
FIRST_EVENT_SECONDS, FIRST_EVENT_TRIES = 0.2, 10


class Stream:
    """One client's view of one job. Each event is told once, whether the ledger or the bus has it first."""

    def __init__(self, counter: Counter, job_id: str, tenant: str | None, last_id: str | None, keepalive_seconds: float) -> None:
        self._counter, self._job_id, self._tenant, self._last_id = counter, job_id, tenant, last_id
        self._keepalive_seconds = keepalive_seconds
        self._told: set[str] = set()

    async def run(self, follower: Follower) -> AsyncGenerator[str]:
        """Yields the text of the stream; its first piece comes when the job is known. Raises Refused(404) before it."""
        events = self.events(follower)
        async with aclosing(events):
            await anext(events)
            yield RECONNECT
            async for event in events:
                yield told(event) if event else KEEPALIVE

    async def events(self, follower: Follower) -> AsyncGenerator[Event | None]:
        """None when the job is known, and whenever nothing came for a while. Raises Refused(404) before the first."""
        async with follower.follow(self._job_id) as heard:
            past = await self._past() or await self._first(heard)
            yield None
            for event in self._after_last(past):
                yield event
            if any(ends(event) for event in past):
                return
            async for coming in self._coming(heard):
                yield coming

    async def _past(self) -> list[Event]:
        return [self._own(event) for event in JobEvents.model_validate(await self._counter.ask("job.events", job_id=self._job_id)).events]

    def _own(self, event: Event) -> Event:
        """Raises Refused(404) for another tenant's event."""
        if self._tenant in (None, event.tenant):
            return event
        raise self._unknown()

    def _unknown(self) -> Refused:
        return Refused(404, "job-unknown", unknown(self._job_id), job_id=self._job_id)

    async def _first(self, heard: "asyncio.Queue[Event]") -> list[Event]:
        """A job just sent may not be in the ledger yet: whichever tells of it first. Raises Refused(404) when neither does."""
        for _ in range(FIRST_EVENT_TRIES):
            try:
                return [self._own(await asyncio.wait_for(heard.get(), FIRST_EVENT_SECONDS))]
            except TimeoutError:
                if past := await self._past():
                    return past
        raise self._unknown()

    def _after_last(self, events: list[Event]) -> list[Event]:
        """What the client has not seen, when it says what it saw last; an id that is not there means everything."""
        ids = [event_id(event) for event in events]
        seen = ids.index(self._last_id) + 1 if self._last_id in ids else 0
        self._told.update(ids)
        return events[seen:]

    async def _coming(self, heard: "asyncio.Queue[Event]") -> AsyncIterator[Event | None]:
        """Events as they come; None when there was nothing for a while.

        Then, and before the job's end, the ledger is asked for what was on its way to it when this stream began.
        """
        while True:
            try:
                events: list[Event | None] = [await asyncio.wait_for(heard.get(), self._keepalive_seconds)]
            except TimeoutError:
                events = [None, *await self._missed()]
            if events[-1] and ends(events[-1]):
                events[:0] = [event for event in await self._missed() if not ends(event)]
            for event in events:
                if event is None or self._new(event):
                    yield event
                if event and ends(event):
                    return

    async def _missed(self) -> list[Event]:
        try:
            return await self._past()
        except ReplyTimeout:
            return []

    def _new(self, event: Event) -> bool:
        known = len(self._told)
        self._told.add(event_id(event))
        return len(self._told) > known


def told(event: Event) -> str:
    return f"id: {event_id(event)}\nevent: {event.step}.{event.kind}\ndata: {event.model_dump_json(exclude_none=True)}\n\n"
