"""Submit a job: publish its first command, then the event that it is accepted. Both have deterministic message ids."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from bus.amqp.messages import JOB_STEP, OutboundMessage, build_command, build_event
from bus.amqp.propagation import propagated_headers
from bus.amqp.publisher import Publisher
from bus.errors import PublishError
from bus.ids import derived_id, former_id_header, public_id
from bus.routing_slip import next_command
from contracts.event import Event, EventKind
from contracts.slip import Slip
from contracts.wire import Header

log = structlog.get_logger()


@dataclass(frozen=True)
class JobRequest:
    """A job to submit. `slip.itinerary` holds every step, the first one included. The same job id is the same job.

    `original_request`: the request as it was received, kept in the accepted event so that it can be submitted again with changes.
    """

    job_id: str
    kind: str
    slip: Slip
    deadline: datetime
    tenant: str | None = None
    reply_to: str | None = None
    original_request: dict[str, Any] | None = None
    accepted_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def message_id(self) -> str:
        return derived_id(self.job_id, "order")

    @property
    def headers(self) -> dict[str, Any]:
        tenant = {Header.TENANT.value: self.tenant} if self.tenant else {}
        return propagated_headers() | {Header.DEADLINE.value: self.deadline.isoformat()} | tenant

    def command_message(self) -> OutboundMessage:
        step, body = next_command(self.slip)
        headers = self.headers | former_id_header(public_id(self.job_id, "order"))
        return build_command(step, body, message_id=self.message_id, job_id=self.job_id, headers=headers, reply_to=self.reply_to)

    def accepted_event(self) -> OutboundMessage:
        result: dict[str, Any] = {"kind": self.kind, "itinerary": [slip_step.step for slip_step in self.slip.itinerary]}
        if self.original_request is not None:
            result["order"] = self.original_request
        event = Event(
            kind=EventKind.ACCEPTED,
            step=JOB_STEP,
            job_id=self.job_id,
            at=self.accepted_at,
            message_id=self.message_id,
            tenant=self.tenant,
            result=result,
        )
        return build_event(event, self.headers)


async def submit_job(request: JobRequest, publisher: Publisher) -> None:
    """Publish the command, then the accepted event: a job that is announced exists. Raises PublishError when it was not submitted."""
    await publisher.publish(request.command_message())
    try:
        await publisher.publish(request.accepted_event())
    except PublishError as error:
        log.warning("job.accepted_event_lost", job_id=request.job_id, error=str(error))
