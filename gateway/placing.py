"""Place a job, once for each Idempotency-Key, and wait for its end as long as the client likes."""

import asyncio
import hashlib
import json
import secrets
import time
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from bus.events import Follower
from bus.ids import derived_id
from bus.letters import JOB
from bus.orders import Order, place
from bus.outbox import Outbox
from bus.request_reply import ReplyFault, ReplyTimeout, Requests
from contracts.event import Event, EventKind
from contracts.fault import Fault
from contracts.job import Job, JobClaimed, unknown
from gateway.orders import Ad, ImageOrder, Itinerary
from gateway.problems import Refused

ENDS = frozenset({EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELLED})
FRESH_SECONDS, MOST_FRESH = 10.0, 10_000
LONGEST_SAID = 32 << 10

Ordered = ImageOrder | Ad | Itinerary


class Counter:
    """Where jobs are handed in."""

    def __init__(self, requests: Requests, outbox: Outbox, follower: Follower, question_seconds: float) -> None:
        self.requests, self.outbox, self.follower, self._question_seconds = requests, outbox, follower, question_seconds
        self._fresh: OrderedDict[str, float] = OrderedDict()

    async def ask(self, step: str, **question: Any) -> dict[str, Any]:
        """The ledger's answer. Raises ReplyFault and ReplyTimeout, which name the job asked about and not the question; PublishError."""
        body = {name: value for name, value in question.items() if value is not None}
        job_id = question.get("job_id")
        try:
            return await self.requests.request(step, body, seconds=self._question_seconds)
        except ReplyFault as error:
            raise ReplyFault(error.fault, job_id) from None
        except ReplyTimeout:
            raise ReplyTimeout(job_id, self._question_seconds) from None

    async def job(self, job_id: str, tenant: str | None = None) -> Job:
        """A job as the ledger has it; one that was just accepted here is given a moment to appear there.

        With a tenant, another's job is answered for as one that nobody knows.
        """
        patience = time.monotonic() + min(2.0, self._question_seconds)
        while True:
            try:
                job = Job.model_validate(await self.ask("job.get", job_id=job_id))
            except ReplyFault as error:
                if error.fault.code != "job-unknown" or not self._just_accepted(job_id) or time.monotonic() > patience:
                    raise
            else:
                return belongs(job, tenant)
            await asyncio.sleep(0.1)

    async def hand_in(
        self, ordered: Ordered, *, seconds: float, wait: float, tenant: str | None, caller: str | None, key: str | None
    ) -> "Placed":
        """Place the job and await its end. Raises ReplyFault when it failed, ReplyTimeout when its deadline came first, Refused."""
        job_id = str(time_ordered_id()) if key is None else derived_id("idempotency-key", caller or "", key)
        if key is not None and await self._known(job_id, ordered, tenant):
            return Placed(job_id, await self._end_of(job_id, wait) if wait else None)
        wait = min(wait, seconds)
        order = Order(
            job_id=job_id,
            kind=ordered.kind,
            slip=ordered.slip(job_id),
            deadline=datetime.now(UTC) + timedelta(seconds=seconds),
            tenant=tenant,
            reply_to=self.requests.reply_queue if wait else None,
            said=repeatable(ordered),
        )
        with self.requests.expect(job_id) as reply:
            await asyncio.shield(place(order, self.outbox))
            self._remember(job_id)
            if not wait:
                return Placed(job_id)
            try:
                return Placed(job_id, await self.requests.within(wait, job_id, reply))
            except ReplyTimeout:
                if wait >= seconds:
                    raise
                return Placed(job_id)

    async def _known(self, job_id: str, ordered: Ordered, tenant: str | None) -> bool:
        """Whether the key's job is under way. A job that was claimed but never sent is sent now: its ids make sure that it is done once."""
        sha256 = digest(ordered)
        answer = await self.ask("job.claim", job_id=job_id, kind=ordered.kind, sha256=sha256, tenant=tenant)
        claimed = JobClaimed.model_validate(answer)
        if claimed.sha256 != sha256:
            raise Refused(422, "idempotency-key-reused", "This Idempotency-Key was used with another body.", job_id=job_id)
        return claimed.accepted

    async def _end_of(self, job_id: str, wait: float) -> dict[str, Any] | None:
        """The result of a job that others began; None when it has none in time. Raises ReplyFault when it failed."""
        async with self.follower.follow(job_id) as heard:
            job = await self.job(job_id)
            if job.fault:
                raise ReplyFault(job.fault, job_id)
            if job.state == "completed":
                return job.result or {}
            event = await the_end(heard, wait)
        if event and event.fault:
            raise ReplyFault(event.fault, job_id)
        return event.result or {} if event else None

    def _remember(self, job_id: str) -> None:
        self._fresh[job_id] = time.monotonic()
        if len(self._fresh) > MOST_FRESH:
            self._fresh.popitem(last=False)

    def _just_accepted(self, job_id: str) -> bool:
        return time.monotonic() - self._fresh.get(job_id, -FRESH_SECONDS) < FRESH_SECONDS


def belongs(job: Job, tenant: str | None) -> Job:
    """Raises ReplyFault, in the ledger's own words, for a job of somebody else."""
    if tenant is None or job.tenant == tenant:
        return job
    raise ReplyFault(Fault(code="job-unknown", message=unknown(job.job_id), step="job.get"), job.job_id)


class Placed:
    """A job that is under way, or (with a result) at its end."""

    def __init__(self, job_id: str, result: dict[str, Any] | None = None) -> None:
        self.job_id, self.result = job_id, result


def ends(event: Event) -> bool:
    return event.step == JOB and event.kind in ENDS


async def the_end(heard: "asyncio.Queue[Event]", seconds: float) -> Event | None:
    """The event with which a job ends, when it comes in time."""
    try:
        async with asyncio.timeout(seconds):
            while not ends(event := await heard.get()):
                pass
            return event
    except TimeoutError:
        return None


def repeatable(ordered: Ordered) -> dict[str, Any] | None:
    """The order for the record; None for one so long that the record would rather do without."""
    said = ordered.model_dump(mode="json", exclude_unset=True)
    return said if len(json.dumps(said)) <= LONGEST_SAID else None


def digest(ordered: Ordered) -> str:
    """The same order in another spelling is the same: spaces, and the order of fields, do not count."""
    body = ordered.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def time_ordered_id() -> UUID:
    """A UUID of version 7 (RFC 9562): milliseconds, then chance. Databases like ids that come in order."""
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 7 << 76
    return UUID(int=number & ~(3 << 62) | 2 << 62)
