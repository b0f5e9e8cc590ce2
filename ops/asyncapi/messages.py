"""The messages of the document: headers, correlation id, payload, binding and an example of each."""

from typing import Any

from contracts.control import Control
from contracts.event import EventKind, Progress
from contracts.fault import Fault
from contracts.wire import Header
from ops.asyncapi.examples import MOMENT, ORDERS, event_example, example, header_example
from ops.asyncapi.headers import headers
from ops.asyncapi.staff import Speakers

CORRELATION = {"$ref": "#/components/correlationIds/job"}
WHOLE_JOB = "job"


def messages(speakers: Speakers, refs: dict[str, str]) -> dict[str, Any]:
    """All messages by name. `refs`: the schema of each contract."""
    made: dict[str, Any] = {}
    for actor in speakers.workers:
        command, result = f"{actor.step}.v1", f"{actor.step}.done.v1"
        asked = header_example(command, reply_to="amq.gen-abc") if actor.question else header_example(command)
        made[command] = message(command, "command", refs[command], example(actor.command), actor.description, asked)
        made[result] = message(result, "reply", refs[result], example(actor.result), f"What `{actor.step}` answers, to `reply_to`.")
    made["fault.v1"] = message("fault.v1", "reply", refs["fault.v1"], example(Fault), "Instead of a result: why it could not be done.")
    made["control.v1"] = message("control.v1", "event", refs["control.v1"], example(Control), "Everyone stops work on a job.")
    return made | orders(refs) | events(speakers, refs) | dead(speakers, refs)


def message(
    name: str, kind: str, ref: str | dict[str, Any], shown: dict[str, Any], summary: str, said: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "summary": summary,
        "contentType": "application/json",
        "correlationId": CORRELATION,
        "headers": headers(kind, name if kind != "dead" else None),
        "payload": {"$ref": ref} if isinstance(ref, str) else ref,
        "bindings": {"amqp": {"contentEncoding": "utf-8", "messageType": name, "bindingVersion": "0.3.0"}},
        "examples": [{"name": "example", "headers": said or header_example(name), "payload": shown}],
    }


def orders(refs: dict[str, str]) -> dict[str, Any]:
    """The foreign forms: no property and no header is asked for, the queue says what they are."""
    made = {}
    for name in ("nested", "flat"):
        of_form = {title: order for title, order in ORDERS.items() if title.startswith(name)}
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


def events(speakers: Speakers, refs: dict[str, str]) -> dict[str, Any]:
    """One message for each kind of event, and one for each step's completion, with its result."""
    said: dict[str, dict[str, Any]] = {
        EventKind.PROGRESS: {"progress": example(Progress) | {"current_step": 10, "total_steps": 20, "progress_percent": 50}},
        EventKind.FAILED: {"fault": example(Fault)},
        EventKind.CANCELLED: {"fault": example(Fault) | {"code": "cancelled", "message": "the job was cancelled"}},
    }
    made = {f"event.{kind}": event(refs, kind, None, {"progress", "fault"} & said[kind].keys(), said[kind]) for kind in said}
    told = {"result": {"kind": "image_order", "itinerary": ["image", "watermark", "upload"]}}
    made["event.accepted"] = event(refs, EventKind.ACCEPTED, WHOLE_JOB, {"result"}, told)
    made["event.job.completed"] = event(refs, EventKind.COMPLETED, WHOLE_JOB, {"result"}, {"result": {"result_urls": []}})
    for actor in speakers.workers:
        if actor.announces:
            shown, ref = {"result": example(actor.result)}, refs[f"{actor.step}.done.v1"]
            made[f"event.{actor.step}.completed"] = event(refs, EventKind.COMPLETED, actor.step, {"result"}, shown, result=ref)
    return made


def event(
    refs: dict[str, str], kind: str, step: str | None, required: set[str], said: dict[str, Any], result: str | None = None
) -> dict[str, Any]:
    properties: dict[str, Any] = {"kind": {"const": str(kind)}} | ({"step": {"const": str(step)}} if step else {})
    properties |= {"result": {"$ref": result}} if result else {}
    payload = {"allOf": [{"$ref": refs["event.v1"]}, {"type": "object", "properties": properties, "required": sorted(required)}]}
    shown = event_example(step or "image", kind, **said)
    made = message("event.v1", "event", payload, shown, f"{'The job' if step == WHOLE_JOB else step or 'A step or the job'}: {kind}.")
    return made | {"title": f"{step} {kind}" if step else str(kind)}


def dead(speakers: Speakers, refs: dict[str, str]) -> dict[str, Any]:
    """The message as it came: anything at all, where it could not be read."""
    facts = {
        Header.FAULT_CODE.value: "lora-missing", Header.FAULT_MESSAGE.value: "no such weights", Header.ATTEMPT.value: 4,
        Header.FIRST_FAILED.value: MOMENT, Header.LAST_FAILED.value: MOMENT,
        Header.EXCEPTION_TYPE.value: "bus.errors.PermanentError", Header.EXCEPTION_STACK.value: "Traceback …",
    }  # fmt: skip
    made = {}
    for queue in speakers.dead_queues:
        step = queue.removeprefix("atelier.dead.")
        origin = {Header.ORIGIN_QUEUE.value: f"atelier.{step}", Header.ORIGIN_EXCHANGE.value: "", Header.ORIGIN_KEY.value: step}
        ref = refs.get(f"{step}.v1")
        payload = {
            "description": "Usually the command, unchanged; anything, where it could not be read.",
            **({"x-usually": ref} if ref else {}),
        }
        shown = example(next(actor.command for actor in speakers.workers if actor.step == step)) if ref else {"unreadable": True}
        summary = f"A message that `{step}` could not serve; its cause is in the headers."
        said = header_example(f"{step}.v1") | origin | facts
        made[f"dead.{step}"] = message(f"{step}.v1", "dead", payload, shown, summary, said) | {
            "name": f"dead.{step}",
            "title": f"dead.{step}",
        }
    return made
