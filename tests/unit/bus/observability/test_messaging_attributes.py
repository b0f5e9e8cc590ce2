"""Destinations of messaging spans by the conventions for RabbitMQ."""

import pytest

from bus.amqp.messages import OutboundMessage
from bus.observability.messaging_attributes import broker_attributes, destination_attributes, messaging_span_name, publish_attributes


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queue", "name", "template"),
    [
        ("atelier.commands", "image", "atelier.image", "atelier.commands:image:atelier.image", None),
        ("atelier.commands", "image", "", "atelier.commands:image", None),
        ("", "foreign", "foreign", "foreign", None),
        ("x", "same", "same", "x:same", None),
        ("", "", "", "amq.default", None),
        ("x", "", "", "x", None),
        ("atelier.events", "a.b", "atelier.ledger", "atelier.events:a.b:atelier.ledger", "atelier.events:{routing_key}:atelier.ledger"),
        ("", "reply-7", "", "reply-7", "{routing_key}"),
    ],
)  # fmt: skip
def test_destination(exchange: str, routing_key: str, queue: str, name: str, template: str | None) -> None:
    attributes = destination_attributes(exchange, routing_key, queue)
    assert attributes["messaging.destination.name"] == name
    assert attributes.get("messaging.destination.template") == template
    assert attributes.get("messaging.rabbitmq.destination.routing_key") == (routing_key or None)
    assert messaging_span_name(attributes | {"messaging.operation.name": "publish"}) == f"publish {template or name}"


def test_one_message_has_its_id_and_several_their_number() -> None:
    message = OutboundMessage("atelier.commands", "image", b"12345", "m", "j", "image.v1")
    one, two = publish_attributes([message]), publish_attributes([message, message])
    assert (one["messaging.message.id"], one["messaging.message.body.size"]) == ("m", 5)
    assert "messaging.batch.message_count" not in one
    assert two["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in two


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("amqp://user:secret@broker:5673/v?heartbeat=5", "broker", 5673),
        ("amqps://broker/", "broker", 5671),
        ("amqp://user:p%40ss@[::1]/", "::1", 5672),
    ],
)
def test_broker_without_its_user(url: str, address: str, port: int) -> None:
    assert broker_attributes(url) == {"server.address": address, "server.port": port}
