"""Place an order: the first command of a job, and word of it to everyone. Both bear ids that can be derived again."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from bus.errors import PublishError
from bus.ids import derived_id
from bus.letters import JOB, Letter, command_letter
from bus.outbox import Outbox
from bus.routing_slip import depart
from bus.travelling import travelling
from contracts import channels
from contracts.event import Event, EventKind
from contracts.slip import Slip
from contracts.wire import Header

log = structlog.get_logger()


@dataclass(frozen=True)
class Order:
    """A job to be done. `slip.itinerary` holds every stop, the first among them. The same job id is the same order.

    `said`: the order as it was given, told to everyone, so that it can be given again with changes.
    """

    job_id: str
    kind: str
    slip: Slip
    deadline: datetime
    tenant: str | None = None
    reply_to: str | None = None
    said: dict[str, Any] | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def message_id(self) -> str:
        return derived_id(self.job_id, "order")

    @property
    def headers(self) -> dict[str, Any]:
        tenant = {Header.TENANT.value: self.tenant} if self.tenant else {}
        return travelling() | {Header.DEADLINE.value: self.deadline.isoformat()} | tenant

    def command(self) -> Letter:
        step, body = depart(self.slip)
        return command_letter(step, body, message_id=self.message_id, job_id=self.job_id, headers=self.headers, reply_to=self.reply_to)

    def accepted(self) -> Letter:
        told: dict[str, Any] = {"kind": self.kind, "itinerary": [stop.step for stop in self.slip.itinerary]}
        if self.said is not None:
            told["order"] = self.said
        event = Event(
            kind=EventKind.ACCEPTED,
            step=JOB,
            job_id=self.job_id,
            at=self.at,
            message_id=self.message_id,
            tenant=self.tenant,
            result=told,
        )
        key = channels.event_key(JOB, EventKind.ACCEPTED, self.job_id)
        body = event.model_dump_json(exclude_none=True).encode()
        message_id = derived_id(self.message_id, JOB, EventKind.ACCEPTED)
        return Letter(channels.EVENTS, key, body, message_id, self.job_id, "event.v1", self.headers)


async def place(order: Order, outbox: Outbox) -> None:
    """The command first: whoever hears that a job is accepted may rely on it. Raises PublishError when it is not."""
    await outbox.post(order.command())
    try:
        await outbox.post(order.accepted())
    except PublishError as error:
        log.warning("job.untold", job_id=order.job_id, error=str(error))
