"""Revocations of console sessions: the gateway that logs somebody out tells all gateways that run at that time.

They are broadcast on the fanout exchange `atelier.control`. Nothing stores them: a gateway that starts later does not learn of them.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic import ValidationError

from bus.amqp import signing
from bus.amqp.exclusive_queue import consume_exclusive, declare_exclusive_queue
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher
from contracts import broker_names
from contracts.control import REVOKED_TYPE, SessionRevoked

log = structlog.get_logger()


async def publish_revocation(publisher: Publisher, revoked: SessionRevoked) -> None:
    """Raises PublishError."""
    body = revoked.model_dump_json().encode()
    await publisher.publish(OutboundMessage(broker_names.CONTROL_EXCHANGE, "", body, str(uuid4()), "", REVOKED_TYPE))


@asynccontextmanager
async def receive_revocations(publisher: Publisher, on_revoked: Callable[[str, float], None]) -> AsyncIterator[None]:
    """Call `on_revoked` with the id and the end (Unix time) of each revoked session."""

    async def on_message(message: AbstractIncomingMessage) -> None:
        if message.type != REVOKED_TYPE or signing.is_refused(message, "control"):
            return
        try:
            revoked = SessionRevoked.model_validate_json(message.body)
        except ValidationError as error:
            log.warning("revocation.invalid", error=str(error)[:500])
            return
        on_revoked(revoked.session, revoked.ends)

    async with publisher.channel() as channel:
        queue = await declare_exclusive_queue(channel, "atelier.listener")
        await queue.bind(broker_names.CONTROL_EXCHANGE)
        await consume_exclusive(queue, on_message)
        yield
