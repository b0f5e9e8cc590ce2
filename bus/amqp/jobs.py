"""Place an order: the first command of a job, and word of it to everyone. Both bear ids that can be derived again."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from bus.amqp.messages import JOB_STEP, OutboundMessage, build_command
from bus.amqp.propagation import propagated_headers
from bus.amqp.publisher import Publisher
from bus.errors import PublishError
from bus.ids import derived_id
from bus.routing_slip import next_command
from contracts import broker_names
from contracts.event import Event, EventKind
from contracts.slip import Slip
from contracts.wire import Header

log = structlog.get_logger()


@dataclass(frozen=True)
class JobRequest:
    """A job to be done. `slip.itinerary` holds every stop, the first among them. The same job id is the same order.

    `said`: the order as it was given, told to everyone, so that it can be given again with changes.
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
        return build_command(step, body, message_id=self.message_id, job_id=self.job_id, headers=self.headers, reply_to=self.reply_to)

    def accepted_event(self) -> OutboundMessage:
        told: dict[str, Any] = {"kind": self.kind, "itinerary": [stop.step for stop in self.slip.itinerary]}
        if self.original_request is not None:
            told["order"] = self.original_request
        event = Event(
            kind=EventKind.ACCEPTED,
            step=JOB_STEP,
            job_id=self.job_id,
            at=self.accepted_at,
            message_id=self.message_id,
            tenant=self.tenant,
            result=told,
        )
        key = broker_names.event_routing_key(JOB_STEP, EventKind.ACCEPTED, self.job_id)
        body = event.model_dump_json(exclude_none=True).encode()
        message_id = derived_id(self.message_id, JOB_STEP, EventKind.ACCEPTED)
        return OutboundMessage(broker_names.EVENTS_EXCHANGE, key, body, message_id, self.job_id, "event.v1", self.headers)


async def submit_job(request: JobRequest, publisher: Publisher) -> None:
    """The command first: whoever hears that a job is accepted may rely on it. Raises PublishError when it is not."""
    await publisher.publish(request.command_message())
    try:
        await publisher.publish(request.accepted_event())
    except PublishError as error:
        log.warning("job.untold", job_id=request.job_id, error=str(error))
