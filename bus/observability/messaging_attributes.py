"""The attributes of messaging spans, by OpenTelemetry's conventions for RabbitMQ: a destination is an exchange, a routing key and, for a
consumer, a queue.

Routing keys of events and of foreign messages are unbounded. A span whose destination has one is named after a template.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from bus.amqp.messages import OutboundMessage
from bus.delivery import Delivery
from contracts.broker_names import COMMANDS_EXCHANGE

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
NAMELESS_DESTINATION = "amq.default"
ANY_ROUTING_KEY = "{routing_key}"


def messaging_span_name(attributes: dict[str, Any]) -> str:
    destination = attributes.get("messaging.destination.template") or attributes["messaging.destination.name"]
    return f"{attributes['messaging.operation.name']} {destination}"


def delivery_attributes(step: str, delivery: Delivery) -> dict[str, Any]:
    """Those of the span that processes a delivery. Exchange and routing key are those of its first delivery, before any retry."""
    origin = delivery.origin
    attributes = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": delivery.message_id,
        "messaging.message.conversation_id": delivery.job_id,
        "messaging.message.body.size": len(delivery.body),
        "atelier.step": step,
        "atelier.attempt": delivery.attempt,
    }
    if delivery.delivery_tag is not None:
        attributes["messaging.rabbitmq.message.delivery_tag"] = delivery.delivery_tag
    return attributes | destination_attributes(origin.exchange, origin.routing_key, delivery.queue)


def publish_attributes(messages: Sequence[OutboundMessage]) -> dict[str, Any]:
    """Those of a span that publishes messages to one destination."""
    first = messages[0]
    attributes: dict[str, Any] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.message.conversation_id": first.job_id,
    }
    if len(messages) > 1:
        attributes["messaging.batch.message_count"] = len(messages)
    else:
        attributes |= {"messaging.message.id": first.message_id, "messaging.message.body.size": len(first.body)}
    return attributes | destination_attributes(first.exchange, first.routing_key)


def destination_attributes(exchange: str, routing_key: str, queue: str = "") -> dict[str, Any]:
    """The name of the destination, and its template where its routing key is unbounded. Our queues and steps are few."""
    attributes = {"messaging.destination.name": join_destination(exchange, routing_key, queue)}
    if routing_key:
        attributes["messaging.rabbitmq.destination.routing_key"] = routing_key
    is_bounded = exchange == COMMANDS_EXCHANGE or routing_key in ("", queue)
    return attributes if is_bounded else attributes | {"messaging.destination.template": join_destination(exchange, ANY_ROUTING_KEY, queue)}


def join_destination(exchange: str, routing_key: str, queue: str) -> str:
    parts = [exchange, routing_key, queue if queue != routing_key else ""]
    return ":".join(part for part in parts if part) or NAMELESS_DESTINATION


def broker_attributes(url: str) -> dict[str, Any]:
    """Address and port of the broker, without user and password."""
    parts = urlsplit(url)
    return {"server.address": parts.hostname or "localhost", "server.port": parts.port or DEFAULT_PORTS.get(parts.scheme, 5672)}
