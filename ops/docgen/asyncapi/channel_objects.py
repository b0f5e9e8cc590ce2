"""The channels and operations of the document: exchanges with routing keys, queues with arguments, senders and receivers."""

from typing import Any

from bus.actor import Actor
from bus.amqp.topology import QUORUM_ARGUMENTS
from contracts import broker_names as names
from ops.registry import BusParticipants

BINDING_VERSION = "0.3.0"
SEND_BINDING = {"deliveryMode": 2, "mandatory": True, "timestamp": True, "bindingVersion": BINDING_VERSION}
RECEIVE_BINDING = {"ack": True, "bindingVersion": BINDING_VERSION}


def build_channels(participants: BusParticipants, messages: dict[str, Any]) -> dict[str, Any]:
    """All channels by their published ids. `messages`: the message objects by name."""
    events = sorted(name for name in messages if name.startswith("event."))
    orders = sorted(name for name in messages if name.startswith("image_generation."))
    channels = command_channels(participants) | {"events": event_channel(events)}
    for actor in participants.event_actors:
        about = f"The queue of `{actor.step}`, bound to {names.EVENTS_EXCHANGE} with {', '.join(actor.binding_keys)}."
        channels[f"hearing.{actor.step}"] = queue_channel(actor.queue, events, about)
    channels["control"] = exchange_channel(names.CONTROL_EXCHANGE, "fanout", None, ["control.v1"], "Broadcasts to every process.")
    about = "The queue of the source systems: durable, without arguments."
    channels[names.IMAGE_GENERATION_QUEUE] = queue_channel(names.IMAGE_GENERATION_QUEUE, orders, about, {})
    for queue in participants.dead_letter_queues:
        name = queue.removeprefix("atelier.")
        channels[name] = queue_channel(queue, [name], "Messages that could not be processed.")
    return channels


def command_channels(participants: BusParticipants) -> dict[str, Any]:
    """For each step the exchange of its commands, its queue, and the queue of its replies."""
    channels: dict[str, Any] = {}
    for actor in participants.command_actors:
        step, command = actor.step, f"{actor.step}.v1"
        about = f"Commands to `{step}` are published here."
        channels[f"commands.{step}"] = exchange_channel(names.COMMANDS_EXCHANGE, "topic", step, [command], about)
        about = f"The queue of `{step}`, bound to {names.COMMANDS_EXCHANGE}."
        channels[f"work.{step}"] = queue_channel(actor.queue, [command], about)
        channels[f"replies.{step}"] = reply_channel([f"{step}.done.v1", "fault.v1"], f"Replies of `{step}`.")
    return channels


def event_channel(events: list[str]) -> dict[str, Any]:
    about = "All events. Bind a queue of your own."
    channel = exchange_channel(names.EVENTS_EXCHANGE, "topic", "{step}.{kind}.{jobId}", events, about)
    channel["parameters"] = {
        "step": {"description": "The name of a step, or `job` for events of the whole job."},
        "kind": {"description": "The kind of event.", "enum": ["accepted", "progress", "completed", "failed", "cancelled"]},
        "jobId": {"description": "The job's id; in a second key with `.`, `*`, `#` and `%` percent-encoded, so that it is one word."},
    }
    return channel


def exchange_channel(exchange: str, kind: str, key: str | None, messages: list[str], description: str) -> dict[str, Any]:
    """An exchange to which messages are published with a routing key."""
    exchange_object = {"name": exchange, "type": kind, "durable": True, "autoDelete": False, "vhost": "/"}
    binding = {"is": "routingKey", "exchange": exchange_object, "bindingVersion": BINDING_VERSION}
    return channel_object(key, messages, description) | {"bindings": {"amqp": binding}}


def queue_channel(queue: str, messages: list[str], description: str, arguments: Any = QUORUM_ARGUMENTS) -> dict[str, Any]:
    """A queue, to which messages can be published through the default exchange."""
    queue_object = {"name": queue, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    binding = {"is": "queue", "queue": queue_object, "bindingVersion": BINDING_VERSION}
    extension = {"x-queue-arguments": dict(arguments)} if arguments else {}
    return channel_object(queue, messages, description) | {"bindings": {"amqp": binding}} | extension


def reply_channel(messages: list[str], description: str) -> dict[str, Any]:
    """A queue of the requester, named by the `reply_to` of the request."""
    return channel_object(None, messages, description)


def channel_object(address: str | None, messages: list[str], description: str) -> dict[str, Any]:
    refs = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    return {"address": address, "description": description, "messages": refs}


def build_operations(participants: BusParticipants, channel_objects: dict[str, Any]) -> dict[str, Any]:
    """All operations by their published ids, as AsyncAPI 3 defines them: what Atelier itself does. A client does the opposite."""
    operations: dict[str, Any] = {}

    def add(name: str, action: str, channel: str, summary: str, actor: Actor | None = None) -> None:
        operations[name] = operation_object(action, channel, channel_objects, summary, actor)

    for actor in participants.command_actors:
        add(f"order.{actor.step}", "send", f"commands.{actor.step}", f"Send a command to `{actor.step}`.", actor)
        add(f"take.{actor.step}", "receive", f"work.{actor.step}", actor.description, actor)
    add("tell", "send", "events", "Publish an event.")
    for actor in participants.event_actors:
        add(f"hear.{actor.step}", "receive", f"hearing.{actor.step}", actor.description)
    add("callEveryone", "send", "control", "Cancel a job.")
    add("heedControl", "receive", "control", "Stop work on a cancelled job.")
    add("takeForeignOrder", "receive", names.IMAGE_GENERATION_QUEUE, "Convert an order of a source system into a job.")
    for queue in participants.dead_letter_queues:
        name = queue.removeprefix("atelier.")
        add(f"bury.{name}", "send", name, "Dead-letter a message that cannot be processed.")
        add(f"keep.{name}", "receive", name, "Store a dead letter for operators.")
    return operations


def operation_object(
    action: str, channel: str, channel_objects: dict[str, Any], summary: str, actor: Actor | None = None
) -> dict[str, Any]:
    refs = [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in channel_objects[channel]["messages"]]
    binding = SEND_BINDING if action == "send" else RECEIVE_BINDING
    operation = {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary, "messages": refs}
    return operation | {"bindings": {"amqp": dict(binding)}} | ({"reply": reply_object(actor, channel_objects)} if actor else {})


def reply_object(actor: Actor, channel_objects: dict[str, Any]) -> dict[str, Any]:
    """The result or a fault, sent to the `reply_to` of the request; without it no reply is sent."""
    name = f"replies.{actor.step}"
    return {
        "address": {"location": "$message.header#/reply_to", "description": "Through the default exchange."},
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{message}"} for message in channel_objects[name]["messages"]],
    }
