"""Queues of one process: exclusive, deleted with their connection, consumed without acknowledgements.

An error of their callback ends one message and is logged; the consumer goes on.
"""

from uuid import uuid4

import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from bus.amqp.tolerant_decoding import undecodable_reason
from bus.delivery import OnMessage

BODY_LIMIT = 16 << 20
"""Bytes. Replies, events and control messages are smaller; to parse a larger body would hold up the whole process."""

log = structlog.get_logger()


async def declare_exclusive_queue(channel: AbstractChannel, prefix: str) -> AbstractQueue:
    """A queue with a name of its own, `<prefix>.<uuid>`."""
    return await channel.declare_queue(f"{prefix}.{uuid4()}", exclusive=True, auto_delete=True)


async def consume_exclusive(queue: AbstractQueue, on_message: OnMessage) -> None:
    """Consume from now on. A message whose properties cannot be decoded, or over BODY_LIMIT, is logged and skipped."""

    async def consume_one(message: AbstractIncomingMessage) -> None:
        try:
            if reason := undecodable_reason(message.headers):
                log.warning("message.undecodable", queue=queue.name, size=len(message.body), reason=reason)
            elif len(message.body) > BODY_LIMIT:
                log.warning("message.too_large", queue=queue.name, size=len(message.body), limit=BODY_LIMIT)
            else:
                await on_message(message)
        except Exception as error:
            log.error("message.failed", queue=queue.name, size=len(message.body), error=repr(error)[:500])

    await queue.consume(consume_one, no_ack=True)
