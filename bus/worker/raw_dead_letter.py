"""The last way to end a delivery: a dead letter of its raw body and the cause. What else its publisher chose is carried in one header.

It is used for a message whose properties cannot be decoded, and when any other way of ending a delivery has failed.
"""

from datetime import UTC, datetime
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.amqp.header_values import read_id, read_tenant
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher
from bus.amqp.tolerant_decoding import undecodable_reason
from bus.delivery import Delivery, carry_original_properties, read_original_properties
from bus.errors import PermanentError
from bus.outcome import DeadLettered, fault_from_error, format_stack
from contracts import broker_names
from contracts.wire import Header

log = structlog.get_logger()


def require_decodable(delivery: Delivery) -> None:
    """Raises PermanentError("undecodable-properties")."""
    if delivery.undecodable:
        message = f"the properties of the message cannot be decoded, so its ids and its tenant are unknown: {delivery.undecodable}"
        raise PermanentError("undecodable-properties", message)


async def publish_raw_dead_letter(
    publisher: Publisher, message: AbstractIncomingMessage, error: Exception, *, name: str, queue: str
) -> DeadLettered:
    """Dead-letter a message of `queue` because of `error`. `name`: of the step or the adapter."""
    code = error.code if isinstance(error, PermanentError) else "internal-error"
    outcome = DeadLettered(fault_from_error(error, code, name, 1), format_stack(error))
    dead_letter = build_raw_dead_letter(message, outcome, name=name, queue=queue)
    await publisher.publish_until_confirmed(dead_letter)
    fields = {"step": name, "code": code, "cause": outcome.fault.message, "message_id": dead_letter.message_id}
    log.error("message.dead_lettered_raw", exception_type=outcome.fault.exception_type, **fields)
    return outcome


def build_raw_dead_letter(message: AbstractIncomingMessage, outcome: DeadLettered, *, name: str, queue: str) -> OutboundMessage:
    """With new ids where its own cannot be decoded."""
    now = datetime.now(UTC).isoformat()
    undecodable = undecodable_reason(message.headers) is not None
    message_id = (None if undecodable else read_id(message.message_id)) or str(uuid4())
    job_id = read_id(message.correlation_id) or message_id
    headers = {
        Header.ORIGIN_QUEUE.value: queue,
        Header.FIRST_FAILED_AT.value: now,
        Header.LAST_FAILED_AT.value: now,
        Header.FAULT_CODE.value: outcome.fault.code,
        Header.FAULT_MESSAGE.value: outcome.fault.message,
        Header.EXCEPTION_TYPE.value: outcome.fault.exception_type or "",
        Header.EXCEPTION_STACK.value: outcome.stack,
        **carry_original_properties(read_original_properties(message)),
    }
    if tenant := read_tenant((message.headers or {}).get(Header.TENANT)):
        headers[Header.TENANT.value] = tenant
    return OutboundMessage("", broker_names.dead_letter_queue(name), message.body, message_id, job_id, "", headers, mandatory=True)
