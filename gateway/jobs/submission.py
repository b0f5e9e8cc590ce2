"""Submitting jobs, once per Idempotency-Key, and awaiting their results."""

import asyncio
import hashlib
import json
import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from bus.amqp.jobs import JobRequest, submit_job
from bus.amqp.messages import JOB_STEP
from bus.amqp.publisher import Publisher
from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.amqp.subscriptions import JobSubscription
from bus.errors import PublishError
from bus.ids import derived_id, has_secret, public_id
from contracts.event import Event, EventKind
from contracts.fault import Fault
from contracts.job import Job, JobClaimed, unknown_job_message
from gateway.commands import CommandClient
from gateway.jobs.drawn_texts import check_drawn_texts
from gateway.jobs.orders import JobOrder
from gateway.problems import HttpProblem

TERMINAL_EVENT_KINDS = frozenset({EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELLED})
RECENT_SECONDS, MAX_RECENT = 10.0, 10_000
"""How long after its submission a job may be missing from the ledger, and how many submissions are remembered for that."""
LEDGER_DELAY_SECONDS, LEDGER_POLL_SECONDS = 2.0, 0.1
MAX_RECORDED_CHARS = 32 << 10
GENERATION_CLAIM_SECONDS = 1.0
"""How long a submission waits for a ledger that does not answer."""


class JobService:
    """Submits jobs, and reads them from the ledger."""

    def __init__(self, commands: CommandClient, publisher: Publisher, subscription: JobSubscription) -> None:
        self._commands, self._requests, self._publisher, self._subscription = commands, commands.requests, publisher, subscription
        self._recently_accepted: OrderedDict[str, float] = OrderedDict()

    async def get_job(self, job_id: str, tenant: str | None = None) -> Job:
        """A job from the ledger. A job that was just accepted may take a moment to appear there.

        With a `tenant`, the job of another one counts as unknown. Raises ReplyFault, ReplyTimeout, PublishError.
        """
        give_up_at = time.monotonic() + min(LEDGER_DELAY_SECONDS, self._commands.settings.question_seconds)
        while True:
            try:
                job = Job.model_validate(await self._commands.query("job.get", {"job_id": job_id}, tenant=tenant))
            except ReplyFault as error:
                if error.fault.code != "job-unknown" or not self._just_accepted(job_id) or time.monotonic() > give_up_at:
                    raise
            else:
                return require_owner(job, tenant)
            await asyncio.sleep(LEDGER_POLL_SECONDS)

    async def submit(
        self, order: JobOrder, *, seconds: float, wait: float, tenant: str | None, caller: str | None, idempotency_key: str | None
    ) -> "Submission":
        """Submit a job and wait up to `wait` seconds for its result.

        Raises ReplyFault when it fails, ReplyTimeout when it misses its deadline, HttpProblem(422) for a reused Idempotency-Key,
        and for a text that no font can draw.
        ReplyFault("generation-foreign") when the order names another tenant's generation.
        """
        check_drawn_texts(order, self._commands.settings)
        job_id = str(uuid7()) if idempotency_key is None else await self._job_id_of_key(caller or "", idempotency_key, tenant)
        if idempotency_key is not None and await self._claim_idempotency_key(job_id, order, tenant):
            return Submission(job_id, await self._await_result(job_id, wait, tenant) if wait else None)
        if idempotency_key is None:
            await self._claim_generation(job_id, order, tenant)
        job = JobRequest(
            job_id=job_id,
            kind=order.kind,
            slip=order.slip(job_id),
            deadline=datetime.now(UTC) + timedelta(seconds=seconds),
            tenant=tenant,
            reply_to=self._requests.reply_queue if wait else None,
            original_request=recordable(order),
        )
        return await self._publish_and_wait(job, seconds, min(wait, seconds))

    async def _publish_and_wait(self, job: JobRequest, seconds: float, wait: float) -> "Submission":
        with self._requests.expect_reply(job.job_id) as reply:
            await asyncio.shield(submit_job(job, self._publisher))
            self._mark_accepted(job.job_id)
            if not wait:
                return Submission(job.job_id)
            try:
                return Submission(job.job_id, await self._requests.wait_for(wait, job.job_id, reply))
            except ReplyTimeout:
                if wait >= seconds:
                    raise
                return Submission(job.job_id)

    async def _job_id_of_key(self, caller: str, idempotency_key: str, tenant: str | None) -> str:
        """The job id of a key. One that was used before ids were keyed by a secret keeps its former job; for one release."""
        former_id = public_id("idempotency-key", caller, idempotency_key)
        try:
            if has_secret() and await self.get_job(former_id, tenant):
                return former_id
        except ReplyFault as error:
            if error.fault.code != "job-unknown":
                raise
        return derived_id("idempotency-key", caller, idempotency_key)

    async def _claim_idempotency_key(self, job_id: str, order: JobOrder, tenant: str | None) -> bool:
        """Whether the key's job is accepted already. A job that was claimed but not published is published again, with the same ids."""
        sha256 = order_digest(order)
        claimed = JobClaimed.model_validate(await self._claim(job_id, order, sha256, tenant))
        if claimed.sha256 != sha256:
            raise HttpProblem(422, "idempotency-key-reused", "This Idempotency-Key was used with another body.", job_id=job_id)
        return claimed.accepted

    async def _claim_generation(self, job_id: str, order: JobOrder, tenant: str | None) -> None:
        """Reserve the order's generation id for its tenant. Without the ledger it is not reserved: the webhook step decides then."""
        if tenant is None or getattr(order, "generation_id", None) is None:
            return
        with suppress(ReplyTimeout, PublishError):
            await self._claim(job_id, order, order_digest(order), tenant, seconds=GENERATION_CLAIM_SECONDS)

    async def _claim(
        self, job_id: str, order: JobOrder, sha256: str, tenant: str | None, *, seconds: float | None = None
    ) -> dict[str, Any]:
        fields = {"job_id": job_id, "kind": order.kind, "sha256": sha256, "tenant": tenant}
        generation = {"generation_id": getattr(order, "generation_id", None), "backend": getattr(order, "base_url", None)}
        return await self._commands.query("job.claim", fields | (generation if tenant else {}), seconds=seconds, tenant=tenant)

    async def _await_result(self, job_id: str, wait: float, tenant: str | None) -> dict[str, Any] | None:
        """The result of a job that another request submitted; None when it has none in time. Raises ReplyFault when it failed."""
        async with self._subscription.subscribe(job_id) as events:
            job = await self.get_job(job_id, tenant)
            if job.fault:
                raise ReplyFault(job.fault, job_id)
            if job.state == "completed":
                return job.result or {}
            event = await wait_for_terminal_event(events, wait, tenant)
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
    """The job. Raises ReplyFault("job-unknown"), as the ledger does for an unknown job, when it is another tenant's."""
    if tenant is None or job.tenant == tenant:
        return job
    raise ReplyFault(Fault(code="job-unknown", message=unknown_job_message(job.job_id), step="job.get"), job.job_id)


class Submission:
    """An accepted job; `result` when it has completed."""

    def __init__(self, job_id: str, result: dict[str, Any] | None = None) -> None:
        self.job_id, self.result = job_id, result


def is_terminal(event: Event) -> bool:
    return event.step == JOB_STEP and event.kind in TERMINAL_EVENT_KINDS


async def wait_for_terminal_event(events: "asyncio.Queue[Event]", seconds: float, tenant: str | None) -> Event | None:
    """The event of the job's tenant that ends the job; None when it does not arrive in time."""
    try:
        async with asyncio.timeout(seconds):
            while not is_terminal(event := await events.get()) or event.tenant != tenant:
                pass
            return event
    except TimeoutError:
        return None


def recordable(order: JobOrder) -> dict[str, Any] | None:
    """The order as the ledger records it; None for one that is too long."""
    fields = order.model_dump(mode="json", exclude_unset=True)
    return fields if len(json.dumps(fields)) <= MAX_RECORDED_CHARS else None


def order_digest(order: JobOrder) -> str:
    """Equal for equal orders: whitespace and the order of fields do not count."""
    fields = order.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def uuid7() -> UUID:
    """A UUID of version 7 (RFC 9562): milliseconds, then random bits. Its order suits a database index."""
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 7 << 76
    return UUID(int=number & ~(3 << 62) | 2 << 62)
