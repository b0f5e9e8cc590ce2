"""What every message has in common: the command and its result, the steps by name, and the headers that are ours.

The body of a message is the step's command as JSON. All that concerns the message itself stands in its AMQP properties
(`message_id`, `correlation_id` = job id, `reply_to`, `type` = `<step>.v1`) and in the headers below.
"""

from enum import StrEnum

from contracts.slip import Slip
from contracts.wire_model import WireModel


class Step(StrEnum):
    """A step is one word everywhere: the queue, the dead letters, the log field, the file of its actor."""

    IMAGE = "image"
    WATERMARK = "watermark"
    UPLOAD = "upload"
    WEBHOOK = "webhook"
    CONSULT = "consult"
    VALIDATE = "validate"
    JUDGE = "judge"
    OVERLAY = "overlay"
    TEXT = "text"


class Header(StrEnum):
    """Headers that we set. Headers that begin with `x-` are the broker's and are never copied."""

    ATTEMPT = "atelier-attempt"
    """int: the run now due; 1 on the first delivery. Set by a retry."""
    DEADLINE = "atelier-deadline"
    """ISO 8601: after this moment nobody wants the work any more. Travels along the slip."""
    TENANT = "atelier-tenant"
    """str: who pays for the work; queues on the device take turns by it."""
    CAUSATION = "atelier-causation"
    """str: the message id that led to this one."""
    DETACHED = "atelier-aside"
    """bool: the command runs beside its job's way (a progress webhook); neither its end nor its failure is the job's."""
    TRACEPARENT = "traceparent"
    TRACESTATE = "tracestate"
    """str: W3C trace context."""
    REQUEST_ID = "atelier-request-id"
    """str: the HTTP request that began the job, as its client or the gateway named it."""
    ORIGIN_QUEUE = "atelier-origin-queue"
    ORIGIN_EXCHANGE = "atelier-origin-exchange"
    ORIGIN_ROUTING_KEY = "atelier-origin-routing-key"
    """str: where a failing message first came in. Kept from the first failure on, because a retry loses it."""
    FIRST_FAILED_AT = "atelier-first-failed-at"
    LAST_FAILED_AT = "atelier-last-failed-at"
    """ISO 8601."""
    FAULT_CODE = "atelier-fault-code"
    FAULT_MESSAGE = "atelier-fault-message"
    EXCEPTION_TYPE = "atelier-exception-type"
    EXCEPTION_STACK = "atelier-exception-stack"
    """str: why a dead letter died. Message and stack are shortened."""
    REPLAY = "atelier-replay"
    """int: how often an operator has sent this message again out of the dead letters. Travels no further."""


class Command(WireModel):
    """The body of a command. With a slip the job goes on after this step; without one it ends here."""

    slip: Slip | None = None


class Result(WireModel):
    """What a step made. Its fields become the slip's variables, from which the next command is built by field name."""


def message_type(step: str) -> str:
    """The AMQP `type` property of a step's command."""
    return f"{step}.v1"
