"""JSON Schemas of all contracts in one pool, every `$ref` on its own, as readers of older drafts want it."""

from typing import Any

from pydantic.json_schema import models_json_schema

from contracts.carried import Carried
from contracts.control import Control
from contracts.event import Event
from contracts.fault import Fault
from contracts.image_generation import FlatOrder, NestedOrder
from ops.asyncapi.staff import Speakers

REF = "#/components/schemas/{model}"


def contracts(speakers: Speakers) -> dict[str, type[Carried]]:
    """Every message by its AMQP type; the foreign forms by their names."""
    commands = {f"{actor.step}.v1": actor.command for actor in speakers.workers}
    results = {f"{actor.step}.done.v1": actor.result for actor in speakers.workers}
    foreign: dict[str, type[Carried]] = {"image_generation.nested": NestedOrder, "image_generation.flat": FlatOrder}
    return commands | results | foreign | {"event.v1": Event, "fault.v1": Fault, "control.v1": Control}


def pool(models: dict[str, type[Carried]], ref: str = REF) -> tuple[dict[str, str], dict[str, Any]]:
    """Which schema each message has, and all schemas by name."""
    distinct = list(dict.fromkeys(models.values()))
    refs, whole = models_json_schema([(model, "validation") for model in distinct], ref_template=ref)
    named = {model: refs[model, "validation"]["$ref"] for model in distinct}
    return {message: named[model] for message, model in models.items()}, alone(whole["$defs"])


def alone(schema: Any) -> Any:
    """A `$ref` with neighbours goes into an `allOf`: before draft 2019-09 its neighbours are not read."""
    if isinstance(schema, list):
        return [alone(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: alone(part) for name, part in schema.items()}
    if "$ref" in parts and len(parts) > 1 and isinstance(parts["$ref"], str):
        return {"allOf": [{"$ref": parts.pop("$ref")}], **parts}
    return parts
