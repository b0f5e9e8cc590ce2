"""What all messages share: the base classes of commands and results, the names of the steps, and our headers.

The body of a message is the step's command as JSON. Everything about the message itself is in its AMQP properties
(`message_id`, `correlation_id` = job id, `reply_to`, `type` = `<step>.v1`) and in the headers below.
"""

from enum import StrEnum

from contracts.slip import Slip
from contracts.wire_model import WireModel


class Step(StrEnum):
    """The steps. The name of a step is also that of its queues, its log field and the file of its actor."""

    IMAGE = "image"
    WATERMARK = "watermark"
    UPLOAD = "upload"
    WEBHOOK = "webhook"
    CONSULT = "consult"
    VALIDATE = "validate"
    JUDGE = "judge"
    OVERLAY = "overlay"
    TEXT = "text"
    MODERATE = "moderate"


class Header(StrEnum):
    """Our headers. Those that begin with `x-` are the broker's or the publisher's."""

    ATTEMPT = "atelier-attempt"
    """int: the number of this attempt; 1 on the first delivery. Set by a retry."""
    DEVICE_MILLISECONDS = "atelier-device-ms"
    """int: the busy time of the device for the earlier attempts of this message. Set by a retry."""
    DEADLINE = "atelier-deadline"
    """ISO 8601: after this time the work is dropped. Copied to the following steps of the slip."""
    TENANT = "atelier-tenant"
    """str: the tenant of the job; the device serves tenants in turn."""
    CAUSATION = "atelier-causation"
    """str: the id of the message that caused this one."""
    FORMER_ID = "atelier-former-id"
    """str: the id that earlier releases gave this message. Consumers of one release recognise it; then it goes."""
    SIGNATURE = "atelier-signature"
    """str: HMAC-SHA256 of our own messages, in hex, with ATELIER_SIGN_MESSAGES=on."""
    DETACHED = "atelier-aside"
    """bool: the command runs beside its job's itinerary, such as a progress webhook; its end or failure does not end the job."""
    TRACEPARENT = "traceparent"
    TRACESTATE = "tracestate"
    """str: W3C trace context."""
    REQUEST_ID = "atelier-request-id"
    """str: the id of the HTTP request that started the job, set by its client or the gateway."""
    ORIGIN_QUEUE = "atelier-origin-queue"
    ORIGIN_EXCHANGE = "atelier-origin-exchange"
    ORIGIN_ROUTING_KEY = "atelier-origin-routing-key"
    """str: where a failed message was first delivered. Set at the first failure and then kept, because a retry is published elsewhere."""
    FIRST_FAILED_AT = "atelier-first-failed-at"
    LAST_FAILED_AT = "atelier-last-failed-at"
    """ISO 8601."""
    FAULT_CODE = "atelier-fault-code"
    FAULT_MESSAGE = "atelier-fault-message"
    EXCEPTION_TYPE = "atelier-exception-type"
    EXCEPTION_STACK = "atelier-exception-stack"
    """str: the cause of a dead letter. Message and stack are shortened."""
    ORIGINAL_PROPERTIES = "atelier-original-properties"
    """bytes: all properties of a failed message as they were encoded, so that its replay can equal it."""
    REPLAY = "atelier-replay"
    """int: how often this message was replayed from the dead letters. Not copied to the following steps."""


class Command(WireModel):
    """The body of a command. With a slip the job continues after this step; without one it ends here."""

    slip: Slip | None = None


class Result(WireModel):
    """The result of a step. Its fields become variables of the slip, from which the next command is built by field name."""


def message_type(step: str) -> str:
    """The AMQP `type` property of a step's command."""
    return f"{step}.v1"
