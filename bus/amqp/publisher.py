"""The confirming publisher: publishes on a connection of its own and waits for the broker's confirm, within a time limit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import cast

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, DeliveryMode
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError
from aio_pika.exceptions import PublishError as Unroutable
from aiormq.channel import Channel
from pamqp.common import FieldTable

from bus import ids
from bus.amqp import confirms, signing
from bus.amqp.messages import OutboundMessage
from bus.amqp.raw_properties import encode_properties
from bus.amqp.short_paths import use_short_paths
from bus.amqp.tolerant_decoding import make_decoding_tolerant
from bus.amqp.topology import declare_dead_letter_queues, read_queue_depth
from bus.errors import PublishError, UnroutableMessage
from bus.retry import retry_while_unavailable
from bus.settings import BusSettings
from contracts import broker_names

log = structlog.get_logger()


class Publisher:
    """Publishes with confirms. Many publishes are in flight at once; each caller awaits its own confirm.

    While confirms are in time, callers do not wait for the socket to drain (decision 8). After a late one they do, so that messages to a
    blocked broker wait in their callers and do not accumulate in the write buffer.
    """

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel, timeout_seconds: float, app_id: str) -> None:
        self._connection, self._channel, self._timeout, self._app_id = connection, channel, timeout_seconds, app_id
        self._confirms_late, self._drain_lock = False, asyncio.Lock()

    @property
    def connected(self) -> bool:
        return not self._channel.is_closed and self._connection.connected.is_set()

    async def publish(self, *messages: OutboundMessage) -> None:
        """Publish concurrently; return when the broker has confirmed every message.

        Raises PublishError when a confirm is not in time, UnroutableMessage when no queue takes a mandatory message.
        """
        if len(messages) == 1:
            await self._publish_one(messages[0])
            return
        for result in await asyncio.gather(*(self._publish_one(message) for message in messages), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def publish_until_confirmed(self, *messages: OutboundMessage) -> None:
        """Publish, and repeat until the broker has confirmed: for messages that must not be lost while it is unavailable."""
        await retry_while_unavailable(lambda: self.publish(*messages), "broker")

    async def consumer_count(self, queue: str) -> int:
        """The consumers of a queue; 0 when it does not exist. Raises PublishError when the broker is unavailable."""
        try:
            async with asyncio.timeout(self._timeout), self.channel() as channel:
                depth = await read_queue_depth(channel, queue)
                return depth.consumers if depth else 0
        except (TimeoutError, AMQPError, ChannelInvalidStateError, OSError) as error:
            raise PublishError(f"the broker did not report the consumers of {queue!r}: {error!r}") from error

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """Another channel on this connection, to declare or to consume with."""
        channel = await self._connection.channel()
        try:
            yield channel
        finally:
            await channel.close()

    async def _publish_one(self, message: OutboundMessage) -> None:
        try:
            await self._basic_publish(message)
        except Unroutable as error:
            if message.mandatory:
                await self._restore_dead_letter_queue(message)
                raise UnroutableMessage(
                    f"no queue takes {message.routing_key!r} from exchange {message.exchange!r}: is the step's actor or topology missing?"
                ) from error
            log.info("reply.late", job_id=message.job_id, queue=message.routing_key)
        except (TimeoutError, DeliveryError, AMQPError, ChannelInvalidStateError, OSError) as error:
            self._confirms_late = True
            raise PublishError(f"the broker did not confirm {message.type or 'a message'} to {message.routing_key!r}: {error!r}") from error

    async def _restore_dead_letter_queue(self, message: OutboundMessage) -> None:
        """Declare the dead-letter queue that somebody has deleted, so that the next attempt to publish succeeds."""
        if message.exchange or not message.routing_key.startswith(broker_names.dead_letter_queue("")):
            return
        log.warning("dead_letter_queue.missing", queue=message.routing_key)
        try:
            async with asyncio.timeout(self._timeout), self.channel() as channel:
                await declare_dead_letter_queues(channel, message.routing_key)
        except (TimeoutError, AMQPError, ChannelInvalidStateError, OSError) as error:
            log.error("dead_letter_queue.not_restored", queue=message.routing_key, error=repr(error))

    async def _basic_publish(self, message: OutboundMessage) -> None:
        async with asyncio.timeout(self._timeout):
            await confirms.publish(
                cast("Channel", await self._channel.get_underlay_channel()),
                message.body,
                self.encode_properties(message),
                exchange=message.exchange,
                routing_key=message.routing_key,
                mandatory=message.exchange == "" or message.mandatory,
                message_id=message.message_id,
                drain_lock=self._drain_lock if self._confirms_late else None,
            )
        self._confirms_late = False

    def encode_properties(self, message: OutboundMessage) -> bytes:
        """The properties of a message, as they go into its header frame; signed where messages are."""
        if message.properties is not None:
            signature = signing.signature_headers(message) if message.routing_key.startswith(broker_names.work_queue("")) else {}
            return message.properties.with_headers(signature).encode()
        return encode_properties(
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=message.message_id,
            correlation_id=message.job_id,
            reply_to=message.reply_to,
            message_type=message.type,
            app_id=self._app_id,
            timestamp=datetime.now(UTC),
            headers=message.headers | signing.signature_headers(message),
        )


@asynccontextmanager
async def open_publisher(settings: BusSettings) -> AsyncIterator[Publisher]:
    """A connection for publishing alone, so that a blocked publisher never blocks a consumer.

    Whoever publishes derives ids and signs: the process uses the secret of these settings from here on.
    """
    use_secrets(settings)
    make_decoding_tolerant()
    use_short_paths()
    properties: FieldTable = {"connection_name": f"{settings.worker} publisher"}
    connection = await aio_pika.connect_robust(settings.broker_url, timeout=settings.publish_timeout_seconds, client_properties=properties)
    try:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        yield Publisher(connection, channel, settings.publish_timeout_seconds, settings.worker)
    finally:
        await connection.close()


def use_secrets(settings: BusSettings) -> None:
    """The secret of the settings for the ids and the signatures of this process. Without one the ids stay as they are."""
    if settings.secret_text:
        ids.use_secret(settings.secret_text)
    signing.sign_with(settings.secret_text if settings.sign_messages == "on" else None)
