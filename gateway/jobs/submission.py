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

from bus.amqp.jobs import JobRequest, submit_job
from bus.amqp.messages import JOB_STEP
from bus.amqp.publisher import Publisher
from bus.amqp.request_reply import ReplyFault, ReplyTimeout, RequestClient
from bus.amqp.subscriptions import JobSubscription
from bus.ids import derived_id
from contracts.event import Event, EventKind
from contracts.fault import Fault
from contracts.job import Job, JobClaimed, unknown_job_message
from gateway.jobs.orders import Ad, ImageOrder, Itinerary
from gateway.problems import HttpProblem

TERMINAL_EVENT_KINDS = frozenset({EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELLED})
RECENT_SECONDS, MAX_RECENT = 10.0, 10_000
MAX_RECORDED_CHARS = 32 << 10

AnyOrder = ImageOrder | Ad | Itinerary


class JobService:
    """Where jobs are handed in."""

    def __init__(self, requests: RequestClient, publisher: Publisher, subscription: JobSubscription, query_seconds: float) -> None:
        self.requests, self.publisher, self.subscription, self._query_seconds = requests, publisher, subscription, query_seconds
        self._recently_accepted: OrderedDict[str, float] = OrderedDict()

    async def query(self, step: str, **arguments: Any) -> dict[str, Any]:
        """The ledger's answer. Raises ReplyFault and ReplyTimeout, which name the job asked about and not the question; PublishError."""
        body = {name: value for name, value in arguments.items() if value is not None}
        job_id = arguments.get("job_id")
        try:
            return await self.requests.request(step, body, seconds=self._query_seconds)
        except ReplyFault as error:
            raise ReplyFault(error.fault, job_id) from None
        except ReplyTimeout:
            raise ReplyTimeout(job_id, self._query_seconds) from None

    async def get_job(self, job_id: str, tenant: str | None = None) -> Job:
        """A job as the ledger has it; one that was just accepted here is given a moment to appear there.

        With a tenant, another's job is answered for as one that nobody knows.
        """
        patience = time.monotonic() + min(2.0, self._query_seconds)
        while True:
            try:
                job = Job.model_validate(await self.query("job.get", job_id=job_id))
            except ReplyFault as error:
                if error.fault.code != "job-unknown" or not self._just_accepted(job_id) or time.monotonic() > patience:
                    raise
            else:
                return require_owner(job, tenant)
            await asyncio.sleep(0.1)

    async def submit(
        self, order_request: AnyOrder, *, seconds: float, wait: float, tenant: str | None, caller: str | None, idempotency_key: str | None
    ) -> "Submission":
        """Place the job and await its end. Raises ReplyFault when it failed, ReplyTimeout when its deadline came first, Refused."""
        job_id = str(uuid7()) if idempotency_key is None else derived_id("idempotency-key", caller or "", idempotency_key)
        if idempotency_key is not None and await self._claim_idempotency_key(job_id, order_request, tenant):
            return Submission(job_id, await self._await_result(job_id, wait) if wait else None)
        wait = min(wait, seconds)
        order = JobRequest(
            job_id=job_id,
            kind=order_request.kind,
            slip=order_request.slip(job_id),
            deadline=datetime.now(UTC) + timedelta(seconds=seconds),
            tenant=tenant,
            reply_to=self.requests.reply_queue if wait else None,
            original_request=recordable(order_request),
        )
        with self.requests.expect_reply(job_id) as reply:
            await asyncio.shield(submit_job(order, self.publisher))
            self._mark_accepted(job_id)
            if not wait:
                return Submission(job_id)
            try:
                return Submission(job_id, await self.requests.wait_for(wait, job_id, reply))
            except ReplyTimeout:
                if wait >= seconds:
                    raise
                return Submission(job_id)

    async def _claim_idempotency_key(self, job_id: str, order_request: AnyOrder, tenant: str | None) -> bool:
        """Whether the key's job is under way. A job that was claimed but never sent is sent now: its ids make sure that it is done once."""
        sha256 = order_digest(order_request)
        answer = await self.query("job.claim", job_id=job_id, kind=order_request.kind, sha256=sha256, tenant=tenant)
        claimed = JobClaimed.model_validate(answer)
        if claimed.sha256 != sha256:
            raise HttpProblem(422, "idempotency-key-reused", "This Idempotency-Key was used with another body.", job_id=job_id)
        return claimed.accepted

    async def _await_result(self, job_id: str, wait: float) -> dict[str, Any] | None:
        """The result of a job that others began; None when it has none in time. Raises ReplyFault when it failed."""
        async with self.subscription.subscribe(job_id) as heard:
            job = await self.get_job(job_id)
            if job.fault:
                raise ReplyFault(job.fault, job_id)
            if job.state == "completed":
                return job.result or {}
            event = await wait_for_terminal_event(heard, wait)
        if event and event.fault:
            raise ReplyFault(event.fault, job_id)
        return event.result or {} if event else None

    def _mark_accepted(self, job_id: str) -> None:
        self._recently_accepted[job_id] = time.monotonic()
        if len(self._recently_accepted) > MAX_RECENT:
            self._recently_accepted.popitem(last=False)

    def _just_accepted(self, job_id: str) -> bool:
        return time.monotonic() - self._recently_accepted.get(job_id, -RECENT_SECONDS) < RECENT_SECONDS


def require_owner(job: Job, tenant: str | None) -> Job:
    """Raises ReplyFault, in the ledger's own words, for a job of somebody else."""
    if tenant is None or job.tenant == tenant:
        return job
    raise ReplyFault(Fault(code="job-unknown", message=unknown_job_message(job.job_id), step="job.get"), job.job_id)


class Submission:
    """A job that is under way, or (with a result) at its end."""

    def __init__(self, job_id: str, result: dict[str, Any] | None = None) -> None:
        self.job_id, self.result = job_id, result


def is_terminal(event: Event) -> bool:
    return event.step == JOB_STEP and event.kind in TERMINAL_EVENT_KINDS


async def wait_for_terminal_event(events: "asyncio.Queue[Event]", seconds: float) -> Event | None:
    """The event with which a job ends, when it comes in time."""
    try:
        async with asyncio.timeout(seconds):
            while not is_terminal(event := await events.get()):
                pass
            return event
    except TimeoutError:
        return None


def recordable(order_request: AnyOrder) -> dict[str, Any] | None:
    """The order for the record; None for one so long that the record would rather do without."""
    said = order_request.model_dump(mode="json", exclude_unset=True)
    return said if len(json.dumps(said)) <= MAX_RECORDED_CHARS else None


def order_digest(order_request: AnyOrder) -> str:
    """The same order in another spelling is the same: spaces, and the order of fields, do not count."""
    body = order_request.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def uuid7() -> UUID:
    """A UUID of version 7 (RFC 9562): milliseconds, then chance. Databases like ids that come in order."""
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 7 << 76
    return UUID(int=number & ~(3 << 62) | 2 << 62)
