"""The channels and operations of the document: exchanges with their keys, queues with their arguments, who sends and who receives."""

from typing import Any

from bus.actor import Actor
from bus.amqp.topology import QUORUM_ARGUMENTS
from contracts import broker_names as names
from ops.registry import BusParticipants

BINDING_VERSION = "0.3.0"
SEND_BINDING = {"deliveryMode": 2, "mandatory": True, "timestamp": True, "bindingVersion": BINDING_VERSION}
RECEIVE_BINDING = {"ack": True, "bindingVersion": BINDING_VERSION}


def build_channels(participants: BusParticipants, messages: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for actor in participants.command_actors:
        command = f"{actor.step}.v1"
        made[f"commands.{actor.step}"] = exchange_channel(
            names.COMMANDS_EXCHANGE, "topic", actor.step, [command], f"Where a command to `{actor.step}` is published."
        )
        made[f"work.{actor.step}"] = queue_channel(
            actor.queue, [command], f"The queue of `{actor.step}`, bound to {names.COMMANDS_EXCHANGE}."
        )
        made[f"replies.{actor.step}"] = reply_channel([f"{actor.step}.done.v1", "fault.v1"], f"Answers of `{actor.step}`.")
    events = sorted(name for name in messages if name.startswith("event."))
    made["events"] = exchange_channel(
        names.EVENTS_EXCHANGE, "topic", "{step}.{kind}.{jobId}", events, "Everything that happens. Bind a queue of your own."
    )
    made["events"]["parameters"] = {
        "step": {"description": "A step's name, or `job` for the whole of it."},
        "kind": {"description": "What happened.", "enum": ["accepted", "progress", "completed", "failed", "cancelled"]},
        "jobId": {"description": "The job's id."},
    }
    for actor in participants.event_actors:
        made[f"hearing.{actor.step}"] = queue_channel(
            actor.queue, events, f"Bound to {names.EVENTS_EXCHANGE} by {', '.join(actor.binding_keys)}."
        )
    made["control"] = exchange_channel(names.CONTROL_EXCHANGE, "fanout", None, ["control.v1"], "Words to every process at once.")
    orders = sorted(name for name in messages if name.startswith("image_generation."))
    made[names.IMAGE_GENERATION_QUEUE] = queue_channel(
        names.IMAGE_GENERATION_QUEUE, orders, "The source systems' queue: durable, without arguments.", {}
    )
    for queue in participants.dead_letter_queues:
        made[queue.removeprefix("atelier.")] = queue_channel(queue, [queue.removeprefix("atelier.")], "What could not be done.")
    return made


def exchange_channel(exchange: str, kind: str, key: str | None, messages: list[str], description: str) -> dict[str, Any]:
    """Published to an exchange under a routing key."""
    of_exchange = {"name": exchange, "type": kind, "durable": True, "autoDelete": False, "vhost": "/"}
    binding = {"is": "routingKey", "exchange": of_exchange, "bindingVersion": BINDING_VERSION}
    return channel_object(key, messages, description) | {"bindings": {"amqp": binding}}


def queue_channel(queue: str, messages: list[str], description: str, arguments: Any = QUORUM_ARGUMENTS) -> dict[str, Any]:
    """A queue by its name; published to through the default exchange."""
    of_queue = {"name": queue, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    binding = {"is": "queue", "queue": of_queue, "bindingVersion": BINDING_VERSION}
    shown = {"x-queue-arguments": dict(arguments)} if arguments else {}
    return channel_object(queue, messages, description) | {"bindings": {"amqp": binding}} | shown


def reply_channel(messages: list[str], description: str) -> dict[str, Any]:
    """A queue of the asker's own, which the request names in `reply_to`."""
    return channel_object(None, messages, description)


def channel_object(address: str | None, messages: list[str], description: str) -> dict[str, Any]:
    refs = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    return {"address": address, "description": description, "messages": refs}


def build_operations(participants: BusParticipants, channel_objects: dict[str, Any]) -> dict[str, Any]:
    """As AsyncAPI 3 says it: what Atelier itself does. A client does the opposite."""
    told: dict[str, Any] = {}
    for actor in participants.command_actors:
        told[f"order.{actor.step}"] = operation_object(
            "send", f"commands.{actor.step}", channel_objects, f"Order `{actor.step}`, by anyone.", actor
        )
        told[f"take.{actor.step}"] = operation_object("receive", f"work.{actor.step}", channel_objects, actor.description, actor)
    told["tell"] = operation_object("send", "events", channel_objects, "Tell what happened.")
    for actor in participants.event_actors:
        told[f"hear.{actor.step}"] = operation_object("receive", f"hearing.{actor.step}", channel_objects, actor.description)
    told["callEveryone"] = operation_object("send", "control", channel_objects, "Call a job off.")
    told["heedControl"] = operation_object("receive", "control", channel_objects, "Stop what was called off.")
    told["takeForeignOrder"] = operation_object(
        "receive", names.IMAGE_GENERATION_QUEUE, channel_objects, "Turn an order of a source system's backend into a job."
    )
    for queue in participants.dead_letter_queues:
        name = queue.removeprefix("atelier.")
        told[f"bury.{name}"] = operation_object("send", name, channel_objects, "Bury what cannot be done.")
        told[f"keep.{name}"] = operation_object("receive", name, channel_objects, "Keep a dead letter for operators.")
    return told


def operation_object(
    action: str, channel: str, channel_objects: dict[str, Any], summary: str, actor: Actor | None = None
) -> dict[str, Any]:
    refs = [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in channel_objects[channel]["messages"]]
    binding = SEND_BINDING if action == "send" else RECEIVE_BINDING
    said = {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary, "messages": refs}
    return said | {"bindings": {"amqp": dict(binding)}} | ({"reply": reply_object(actor, channel_objects)} if actor else {})


def reply_object(actor: Actor, channel_objects: dict[str, Any]) -> dict[str, Any]:
    """The result or a fault, to the queue that the request named; none where it named none."""
    name = f"replies.{actor.step}"
    return {
        "address": {"location": "$message.header#/reply_to", "description": "Through the default exchange."},
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{message}"} for message in channel_objects[name]["messages"]],
    }
