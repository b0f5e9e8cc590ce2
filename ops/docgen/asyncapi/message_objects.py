"""The messages of the document, each with headers, correlation id, payload, binding and an example."""

from typing import Any

from contracts.control import Control
from contracts.event import EventKind, Progress
from contracts.fault import Fault
from contracts.wire import Header
from ops.docgen.asyncapi.header_schemas import headers_schema
from ops.docgen.asyncapi.message_examples import EXAMPLE_TIME, IMAGE_ORDER_EXAMPLES, event_example, example_payload, header_example
from ops.registry import BusParticipants

CORRELATION_ID = {"$ref": "#/components/correlationIds/job"}
WHOLE_JOB = "job"


def build_messages(participants: BusParticipants, refs: dict[str, str]) -> dict[str, Any]:
    """All messages by name. `refs`: the schema reference of each message."""
    objects: dict[str, Any] = {}
    for actor in participants.command_actors:
        command, result = f"{actor.step}.v1", f"{actor.step}.done.v1"
        headers = header_example(command, reply_to="amq.gen-abc") if actor.is_query else header_example(command)
        objects[command] = message_object(command, "command", refs[command], example_payload(actor.command), actor.description, headers)
        objects[result] = message_object(
            result, "reply", refs[result], example_payload(actor.result), f"The result of `{actor.step}`, sent to `reply_to`."
        )
    objects["fault.v1"] = message_object(
        "fault.v1", "reply", refs["fault.v1"], example_payload(Fault), "The reply instead of a result: why the command failed."
    )
    objects["control.v1"] = message_object(
        "control.v1", "event", refs["control.v1"], example_payload(Control), "Every worker cancels its deliveries of a job."
    )
    return objects | foreign_order_messages(refs) | event_messages(participants, refs) | dead_letter_messages(participants, refs)


def message_object(
    name: str,
    kind: str,
    ref: str | dict[str, Any],
    payload_example: dict[str, Any],
    summary: str,
    headers_example: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "summary": summary,
        "contentType": "application/json",
        "correlationId": CORRELATION_ID,
        "headers": headers_schema(kind, name if kind != "dead" else None),
        "payload": {"$ref": ref} if isinstance(ref, str) else ref,
        "bindings": {"amqp": {"contentEncoding": "utf-8", "messageType": name, "bindingVersion": "0.3.0"}},
        "examples": [{"name": "example", "headers": headers_example or header_example(name), "payload": payload_example}],
    }


def foreign_order_messages(refs: dict[str, str]) -> dict[str, Any]:
    """The image orders of source systems. They need no properties and no headers."""
    objects = {}
    for name in ("nested", "flat"):
        examples = {title: order for title, order in IMAGE_ORDER_EXAMPLES.items() if title.startswith(name)}
        objects[f"image_generation.{name}"] = {
            "name": f"image_generation.{name}",
            "title": f"Image order, {name}",
            "summary": "An image order, as the backends of the source systems publish it.",
            "description": "Its job id is `generation-<generation_id>`, so an order that is published twice is processed once.",
            "contentType": "application/json",
            "payload": {"$ref": refs[f"image_generation.{name}"]},
            "bindings": {"amqp": {"contentEncoding": "utf-8", "messageType": "image_generation", "bindingVersion": "0.3.0"}},
            "examples": [{"name": title, "payload": order} for title, order in examples.items()],
        }
    return objects


def event_messages(participants: BusParticipants, refs: dict[str, str]) -> dict[str, Any]:
    """One message for each kind of event, and one for the completion of each step, with its result."""
    fields_of_kind: dict[str, dict[str, Any]] = {
        EventKind.PROGRESS: {"progress": example_payload(Progress) | {"current_step": 10, "total_steps": 20, "progress_percent": 50}},
        EventKind.FAILED: {"fault": example_payload(Fault)},
        EventKind.CANCELLED: {"fault": example_payload(Fault) | {"code": "cancelled", "message": "the job was cancelled"}},
    }
    objects = {
        f"event.{kind}": event_message(refs, kind, None, {"progress", "fault"} & fields.keys(), fields)
        for kind, fields in fields_of_kind.items()
    }
    itinerary = {"result": {"kind": "image_order", "itinerary": ["image", "watermark", "upload"]}}
    objects["event.accepted"] = event_message(refs, EventKind.ACCEPTED, WHOLE_JOB, {"result"}, itinerary)
    objects["event.job.completed"] = event_message(refs, EventKind.COMPLETED, WHOLE_JOB, {"result"}, {"result": {"result_urls": []}})
    for actor in participants.command_actors:
        if actor.emit_events:
            result, ref = {"result": example_payload(actor.result)}, refs[f"{actor.step}.done.v1"]
            message = event_message(refs, EventKind.COMPLETED, actor.step, {"result"}, result, result_ref=ref)
            objects[f"event.{actor.step}.completed"] = message
    return objects


def event_message(
    refs: dict[str, str], kind: str, step: str | None, required: set[str], example_fields: dict[str, Any], result_ref: str | None = None
) -> dict[str, Any]:
    properties: dict[str, Any] = {"kind": {"const": str(kind)}} | ({"step": {"const": str(step)}} if step else {})
    properties |= {"result": {"$ref": result_ref}} if result_ref else {}
    payload = {"allOf": [{"$ref": refs["event.v1"]}, {"type": "object", "properties": properties, "required": sorted(required)}]}
    example = event_example(step or "image", kind, **example_fields)
    summary = f"{'The job' if step == WHOLE_JOB else step or 'A step or the job'}: {kind}."
    return message_object("event.v1", "event", payload, example, summary) | {"title": f"{step} {kind}" if step else str(kind)}


FAILURE_HEADERS_EXAMPLE = {
    Header.FAULT_CODE.value: "lora-missing", Header.FAULT_MESSAGE.value: "no such weights", Header.ATTEMPT.value: 4,
    Header.FIRST_FAILED_AT.value: EXAMPLE_TIME, Header.LAST_FAILED_AT.value: EXAMPLE_TIME,
    Header.EXCEPTION_TYPE.value: "bus.errors.PermanentError", Header.EXCEPTION_STACK.value: "Traceback …",
}  # fmt: skip


def dead_letter_messages(participants: BusParticipants, refs: dict[str, str]) -> dict[str, Any]:
    """One message per dead-letter queue: the body as it was received, which may be anything where it was unreadable."""
    commands = {actor.step: actor.command for actor in participants.command_actors}
    objects = {}
    for queue in participants.dead_letter_queues:
        step, name = queue.removeprefix("atelier.dead."), queue.removeprefix("atelier.")
        origin = {Header.ORIGIN_QUEUE.value: f"atelier.{step}", Header.ORIGIN_EXCHANGE.value: "", Header.ORIGIN_ROUTING_KEY.value: step}
        usual = {"x-usually": refs[f"{step}.v1"]} if f"{step}.v1" in refs else {}
        payload = {"description": "Usually the unchanged command; any bytes where the message was unreadable.", **usual}
        example = example_payload(commands[step]) if usual else {"unreadable": True}
        summary = f"A message that `{step}` could not process; its cause is in the headers."
        headers = header_example(f"{step}.v1") | origin | FAILURE_HEADERS_EXAMPLE
        message = message_object(f"{step}.v1", "dead", payload, example, summary, headers)
        objects[name] = message | {"name": name, "title": name}
    return objects
