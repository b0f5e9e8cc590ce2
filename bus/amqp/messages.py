"""What is published for an outcome: event, reply, next stop, retry, burial. Pure: letters are written here, posted by the outbox."""

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from pydantic_core import to_json

from contracts import broker_names
from contracts.control import Control
from contracts.wire import message_type


@dataclass(frozen=True)
class OutboundMessage:
    """A message to publish. `must_route`: no queue for it is an error."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    job_id: str
    type: str
    headers: dict[str, Any] = field(default_factory=dict)
    reply_to: str | None = None
    mandatory: bool = False
    content_type: str = "application/json"
    content_encoding: str | None = None


def build_cancel(job_id: str) -> OutboundMessage:
    return OutboundMessage(
        broker_names.CONTROL_EXCHANGE, "", Control(cancel=job_id).model_dump_json().encode(), str(uuid4()), job_id, "control.v1"
    )


JOB_STEP = "job"


def build_command(
    step: str, body: dict[str, Any], *, message_id: str, job_id: str, headers: dict[str, Any], reply_to: str | None = None
) -> OutboundMessage:
    """A command to a step. Its step names the routing key and the type."""
    return OutboundMessage(
        broker_names.COMMANDS_EXCHANGE, step, encode_json(body), message_id, job_id, message_type(step), headers, reply_to, mandatory=True
    )


def encode_json(body: dict[str, Any]) -> bytes:
    """By pydantic's own core: of 64 kB it takes a tenth of the time."""
    return to_json(body, inf_nan_mode="constants")
