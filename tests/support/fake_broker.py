"""The gateway's services without a broker: real clients, and a publisher that replies by itself."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from aio_pika.abc import AbstractIncomingMessage

from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher
from bus.amqp.request_reply import RequestClient
from bus.amqp.subscriptions import JobSubscription
from bus.errors import PublishError
from bus.storage.claim_store import ClaimStore
from contracts.broker_names import COMMANDS_EXCHANGE, work_queue
from contracts.event import Event
from contracts.fault import Fault
from gateway.commands import CommandClient
from gateway.jobs.submission import JobService
from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.sessions import Sessions
from gateway.services import Services
from gateway.settings import GatewaySettings
from gateway.text.status import TextStatusCache

Reply = dict[str, Any] | Fault | None
"""A result, a fault, or no reply."""
Replier = Reply | Callable[[dict[str, Any]], Reply]


class FakePublisher:
    """Records messages. `replies`: by step; a step without one has no consumer, and its commands are never answered."""

    def __init__(self, replies: dict[str, Replier]) -> None:
        self.replies, self.messages, self.connected = replies, list[OutboundMessage](), True
        self.deltas: dict[str, list[dict[str, Any]]] = {}
        self.requests: RequestClient

    async def publish(self, *messages: OutboundMessage) -> None:
        if not self.connected:
            raise PublishError("the broker did not confirm")
        for message in messages:
            self.messages.append(message)
            if message.exchange == COMMANDS_EXCHANGE and message.reply_to:
                await self._reply(message)

    async def _reply(self, message: OutboundMessage) -> None:
        replier, step = self.replies.get(message.routing_key), message.routing_key
        reply = replier(json.loads(message.body)) if callable(replier) else replier
        for delta in self.deltas.get(step, []) if reply else []:
            await self._deliver(message.job_id, f"{step}.delta.v1", json.dumps(delta))
        if isinstance(reply, Fault):
            await self._deliver(message.job_id, "fault.v1", reply.model_dump_json())
        elif reply is not None:
            await self._deliver(message.job_id, f"{step}.done.v1", json.dumps(reply))

    async def _deliver(self, job_id: str, kind: str, body: str) -> None:
        await self.requests.on_message(cast("AbstractIncomingMessage", FakeMessage(job_id, kind, body.encode())))

    async def consumer_count(self, queue: str) -> int:
        if not self.connected:
            raise PublishError("the broker is unavailable")
        return int(queue in {work_queue(step) for step in self.replies})

    def commands(self, step: str) -> list[dict[str, Any]]:
        """The bodies of the commands published to a step."""
        return [json.loads(message.body) for message in self.messages if message.routing_key == step]


class FakeMessage:
    def __init__(self, correlation_id: str, kind: str, body: bytes) -> None:
        self.correlation_id, self.type, self.body = correlation_id, kind, body


class FakeSubscription:
    """`events`: delivered to every subscriber."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    @asynccontextmanager
    async def subscribe(self, job_id: str) -> AsyncIterator["asyncio.Queue[Event]"]:
        yield self.events


def make_services(publisher: FakePublisher, store: ClaimStore | None = None, **settings: Any) -> Services:
    gateway_settings = GatewaySettings.model_validate({"question_seconds": 0.2} | settings)
    bus_publisher, subscription = cast("Publisher", publisher), cast("JobSubscription", FakeSubscription())
    requests = publisher.requests = RequestClient(bus_publisher, "replies")
    commands = CommandClient(requests, gateway_settings)
    return Services(
        settings=gateway_settings,
        sessions=Sessions(ApiKeys(gateway_settings), 60),
        publisher=bus_publisher,
        subscription=subscription,
        commands=commands,
        jobs=JobService(commands, bus_publisher, subscription),
        text_status=TextStatusCache(commands),
        store=store,
    )
