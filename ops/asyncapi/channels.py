"""The channels and operations of the document: exchanges with their keys, queues with their arguments, who sends and who receives."""

from typing import Any

from bus.actor import Actor
from bus.topology import QUORUM
from contracts import channels as names
from ops.asyncapi.staff import Speakers

BINDING = "0.3.0"
SENT = {"deliveryMode": 2, "mandatory": True, "timestamp": True, "bindingVersion": BINDING}
TAKEN = {"ack": True, "bindingVersion": BINDING}


def channels(speakers: Speakers, messages: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for actor in speakers.workers:
        command = f"{actor.step}.v1"
        made[f"commands.{actor.step}"] = keyed(
            names.COMMANDS, "topic", actor.step, [command], f"Where a command to `{actor.step}` is published."
        )
        made[f"work.{actor.step}"] = queued(actor.queue, [command], f"The queue of `{actor.step}`, bound to {names.COMMANDS}.")
        made[f"replies.{actor.step}"] = answered([f"{actor.step}.done.v1", "fault.v1"], f"Answers of `{actor.step}`.")
    events = sorted(name for name in messages if name.startswith("event."))
    made["events"] = keyed(names.EVENTS, "topic", "{step}.{kind}.{jobId}", events, "Everything that happens. Bind a queue of your own.")
    made["events"]["parameters"] = {
        "step": {"description": "A step's name, or `job` for the whole of it."},
        "kind": {"description": "What happened.", "enum": ["accepted", "progress", "completed", "failed", "cancelled"]},
        "jobId": {"description": "The job's id."},
    }
    for actor in speakers.hearers:
        made[f"hearing.{actor.step}"] = queued(actor.queue, events, f"Bound to {names.EVENTS} by {', '.join(actor.binding_keys)}.")
    made["control"] = keyed(names.CONTROL, "fanout", None, ["control.v1"], "Words to every process at once.")
    orders = sorted(name for name in messages if name.startswith("image_generation."))
    made[names.IMAGE_GENERATION] = queued(names.IMAGE_GENERATION, orders, "The source systems' queue: durable, without arguments.", {})
    for queue in speakers.dead_queues:
        made[queue.removeprefix("atelier.")] = queued(queue, [queue.removeprefix("atelier.")], "What could not be done.")
    return made


def keyed(exchange: str, kind: str, key: str | None, messages: list[str], description: str) -> dict[str, Any]:
    """Published to an exchange under a routing key."""
    of_exchange = {"name": exchange, "type": kind, "durable": True, "autoDelete": False, "vhost": "/"}
    binding = {"is": "routingKey", "exchange": of_exchange, "bindingVersion": BINDING}
    return channel(key, messages, description) | {"bindings": {"amqp": binding}}


def queued(queue: str, messages: list[str], description: str, arguments: Any = QUORUM) -> dict[str, Any]:
    """A queue by its name; published to through the default exchange."""
    of_queue = {"name": queue, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    binding = {"is": "queue", "queue": of_queue, "bindingVersion": BINDING}
    shown = {"x-queue-arguments": dict(arguments)} if arguments else {}
    return channel(queue, messages, description) | {"bindings": {"amqp": binding}} | shown


def answered(messages: list[str], description: str) -> dict[str, Any]:
    """A queue of the asker's own, which the request names in `reply_to`."""
    return channel(None, messages, description)


def channel(address: str | None, messages: list[str], description: str) -> dict[str, Any]:
    refs = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    return {"address": address, "description": description, "messages": refs}


def operations(speakers: Speakers, made: dict[str, Any]) -> dict[str, Any]:
    """As AsyncAPI 3 says it: what Atelier itself does. A client does the opposite."""
    told: dict[str, Any] = {}
    for actor in speakers.workers:
        told[f"order.{actor.step}"] = operation("send", f"commands.{actor.step}", made, f"Order `{actor.step}`, by anyone.", actor)
        told[f"take.{actor.step}"] = operation("receive", f"work.{actor.step}", made, actor.description, actor)
    told["tell"] = operation("send", "events", made, "Tell what happened.")
    for actor in speakers.hearers:
        told[f"hear.{actor.step}"] = operation("receive", f"hearing.{actor.step}", made, actor.description)
    told["callEveryone"] = operation("send", "control", made, "Call a job off.")
    told["heedControl"] = operation("receive", "control", made, "Stop what was called off.")
    told["takeForeignOrder"] = operation("receive", names.IMAGE_GENERATION, made, "Turn an order of a source system's backend into a job.")
    for queue in speakers.dead_queues:
        name = queue.removeprefix("atelier.")
        told[f"bury.{name}"] = operation("send", name, made, "Bury what cannot be done.")
        told[f"keep.{name}"] = operation("receive", name, made, "Keep a dead letter for operators.")
    return told


def operation(action: str, channel: str, made: dict[str, Any], summary: str, actor: Actor | None = None) -> dict[str, Any]:
    refs = [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in made[channel]["messages"]]
    binding = SENT if action == "send" else TAKEN
    said = {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary, "messages": refs}
    return said | {"bindings": {"amqp": dict(binding)}} | ({"reply": reply(actor, made)} if actor else {})


def reply(actor: Actor, made: dict[str, Any]) -> dict[str, Any]:
    """The result or a fault, to the queue that the request named; none where it named none."""
    name = f"replies.{actor.step}"
    return {
        "address": {"location": "$message.header#/reply_to", "description": "Through the default exchange."},
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{message}"} for message in made[name]["messages"]],
    }
