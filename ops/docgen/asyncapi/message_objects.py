"""The messages of the document: headers, correlation id, payload, binding and an example of each."""

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
    """All messages by name. `refs`: the schema of each contract."""
    made: dict[str, Any] = {}
    for actor in participants.command_actors:
        command, result = f"{actor.step}.v1", f"{actor.step}.done.v1"
        asked = header_example(command, reply_to="amq.gen-abc") if actor.is_query else header_example(command)
        made[command] = message_object(command, "command", refs[command], example_payload(actor.command), actor.description, asked)
        made[result] = message_object(
            result, "reply", refs[result], example_payload(actor.result), f"What `{actor.step}` answers, to `reply_to`."
        )
    made["fault.v1"] = message_object(
        "fault.v1", "reply", refs["fault.v1"], example_payload(Fault), "Instead of a result: why it could not be done."
    )
    made["control.v1"] = message_object(
        "control.v1", "event", refs["control.v1"], example_payload(Control), "Everyone stops work on a job."
    )
    return made | foreign_order_messages(refs) | event_messages(participants, refs) | dead_letter_messages(participants, refs)


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
    """The foreign forms: no property and no header is asked for, the queue says what they are."""
    made = {}
    for name in ("nested", "flat"):
        of_form = {title: order for title, order in IMAGE_ORDER_EXAMPLES.items() if title.startswith(name)}
        made[f"image_generation.{name}"] = {
            "name": f"image_generation.{name}",
            "title": f"Image order, {name}",
            "summary": "An order of pictures, as the source systems' backends publish it.",
            "description": "Its job id is `generation-<generation_id>`: the same order twice is done once.",
            "contentType": "application/json",
            "payload": {"$ref": refs[f"image_generation.{name}"]},
            "bindings": {"amqp": {"contentEncoding": "utf-8", "messageType": "image_generation", "bindingVersion": "0.3.0"}},
            "examples": [{"name": title, "payload": order} for title, order in of_form.items()],
        }
    return made


def event_messages(participants: BusParticipants, refs: dict[str, str]) -> dict[str, Any]:
    """One message for each kind of event, and one for each step's completion, with its result."""
    said: dict[str, dict[str, Any]] = {
        EventKind.PROGRESS: {"progress": example_payload(Progress) | {"current_step": 10, "total_steps": 20, "progress_percent": 50}},
        EventKind.FAILED: {"fault": example_payload(Fault)},
        EventKind.CANCELLED: {"fault": example_payload(Fault) | {"code": "cancelled", "message": "the job was cancelled"}},
    }
    made = {f"event.{kind}": event_message(refs, kind, None, {"progress", "fault"} & said[kind].keys(), said[kind]) for kind in said}
    told = {"result": {"kind": "image_order", "itinerary": ["image", "watermark", "upload"]}}
    made["event.accepted"] = event_message(refs, EventKind.ACCEPTED, WHOLE_JOB, {"result"}, told)
    made["event.job.completed"] = event_message(refs, EventKind.COMPLETED, WHOLE_JOB, {"result"}, {"result": {"result_urls": []}})
    for actor in participants.command_actors:
        if actor.emit_events:
            shown, ref = {"result": example_payload(actor.result)}, refs[f"{actor.step}.done.v1"]
            made[f"event.{actor.step}.completed"] = event_message(refs, EventKind.COMPLETED, actor.step, {"result"}, shown, result_ref=ref)
    return made


def event_message(
    refs: dict[str, str], kind: str, step: str | None, required: set[str], example_fields: dict[str, Any], result_ref: str | None = None
) -> dict[str, Any]:
    properties: dict[str, Any] = {"kind": {"const": str(kind)}} | ({"step": {"const": str(step)}} if step else {})
    properties |= {"result": {"$ref": result_ref}} if result_ref else {}
    payload = {"allOf": [{"$ref": refs["event.v1"]}, {"type": "object", "properties": properties, "required": sorted(required)}]}
    shown = event_example(step or "image", kind, **example_fields)
    made = message_object(
        "event.v1", "event", payload, shown, f"{'The job' if step == WHOLE_JOB else step or 'A step or the job'}: {kind}."
    )
    return made | {"title": f"{step} {kind}" if step else str(kind)}


def dead_letter_messages(participants: BusParticipants, refs: dict[str, str]) -> dict[str, Any]:
    """The message as it came: anything at all, where it could not be read."""
    facts = {
        Header.FAULT_CODE.value: "lora-missing", Header.FAULT_MESSAGE.value: "no such weights", Header.ATTEMPT.value: 4,
        Header.FIRST_FAILED_AT.value: EXAMPLE_TIME, Header.LAST_FAILED_AT.value: EXAMPLE_TIME,
        Header.EXCEPTION_TYPE.value: "bus.errors.PermanentError", Header.EXCEPTION_STACK.value: "Traceback …",
    }  # fmt: skip
    made = {}
    for queue in participants.dead_letter_queues:
        step = queue.removeprefix("atelier.dead.")
        origin = {Header.ORIGIN_QUEUE.value: f"atelier.{step}", Header.ORIGIN_EXCHANGE.value: "", Header.ORIGIN_ROUTING_KEY.value: step}
        ref = refs.get(f"{step}.v1")
        payload = {
            "description": "Usually the command, unchanged; anything, where it could not be read.",
            **({"x-usually": ref} if ref else {}),
        }
        shown = (
            example_payload(next(actor.command for actor in participants.command_actors if actor.step == step))
            if ref
            else {"unreadable": True}
        )
        summary = f"A message that `{step}` could not serve; its cause is in the headers."
        said = header_example(f"{step}.v1") | origin | facts
        made[f"dead.{step}"] = message_object(f"{step}.v1", "dead", payload, shown, summary, said) | {
            "name": f"dead.{step}",
            "title": f"dead.{step}",
        }
    return made
