"""What happens to one job, as server-sent events: what the ledger has, then what comes, until the job ends.

An event's id is that of the message that carried it, so a stream that broke is resumed after it at any gateway.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from bus.events import Follower, event_id
from bus.request_reply import ReplyTimeout
from contracts.event import Event
from contracts.job import JobEvents
from gateway.placing import Counter, ends
from gateway.problems import Refused

RECONNECT = "retry: 2000\n\n"
FIRST_EVENT_SECONDS, FIRST_EVENT_TRIES = 0.2, 10


class Stream:
    """One client's view of one job. Each event is told once, whether the ledger or the bus has it first."""

    def __init__(self, counter: Counter, job_id: str, last_id: str | None, keepalive_seconds: float) -> None:
        self._counter, self._job_id, self._last_id, self._keepalive_seconds = counter, job_id, last_id, keepalive_seconds
        self._told: set[str] = set()

    async def run(self, follower: Follower) -> AsyncGenerator[str]:
        """Yields the text of the stream; its first piece comes when the job is known. Raises Refused(404) before it."""
        async with follower.follow(self._job_id) as heard:
            past = await self._past() or await self._first(heard)
            yield RECONNECT
            for event in self._after_last(past):
                yield told(event)
            if any(ends(event) for event in past):
                return
            async for coming in self._coming(heard):
                yield told(coming) if coming else ": keepalive\n\n"

    async def _past(self) -> list[Event]:
        return JobEvents.model_validate(await self._counter.ask("job.events", job_id=self._job_id)).events

    async def _first(self, heard: "asyncio.Queue[Event]") -> list[Event]:
        """A job just sent may not be in the ledger yet: whichever tells of it first. Raises Refused(404) when neither does."""
        for _ in range(FIRST_EVENT_TRIES):
            try:
                return [await asyncio.wait_for(heard.get(), FIRST_EVENT_SECONDS)]
            except TimeoutError:
                if past := await self._past():
                    return past
        raise Refused(404, "job-unknown", f"nothing is known of a job {self._job_id!r}")

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
