"""JSON Schemas of all contracts in one pool; a `$ref` has no sibling keywords, as older drafts require."""

import json
from typing import Any

from pydantic.json_schema import models_json_schema

from contracts.control import Control
from contracts.event import Event
from contracts.fault import Fault
from contracts.image_generation import FlatOrder, NestedOrder
from contracts.wire_model import WireModel
from ops.registry import BusParticipants, bus_participants

REF_TEMPLATE = "#/components/schemas/{model}"


def message_models(participants: BusParticipants) -> dict[str, type[WireModel]]:
    """The model of every message by its AMQP type; of the foreign orders by the names of their forms."""
    commands = {f"{actor.step}.v1": actor.command for actor in participants.command_actors}
    results = {f"{actor.step}.done.v1": actor.result for actor in participants.command_actors}
    foreign: dict[str, type[WireModel]] = {"image_generation.nested": NestedOrder, "image_generation.flat": FlatOrder}
    return commands | results | foreign | {"event.v1": Event, "fault.v1": Fault, "control.v1": Control}


def schema_pool(models: dict[str, type[WireModel]], ref_template: str = REF_TEMPLATE) -> tuple[dict[str, str], dict[str, Any]]:
    """The schema name of each message, and all schemas by name."""
    distinct = list(dict.fromkeys(models.values()))
    refs, definitions = models_json_schema([(model, "validation") for model in distinct], ref_template=ref_template)
    names = {model: refs[model, "validation"]["$ref"] for model in distinct}
    return {message: names[model] for message, model in models.items()}, isolate_refs(definitions["$defs"])


def isolate_refs(schema: Any) -> Any:
    """Move a `$ref` that has siblings into an `allOf`: before draft 2019-09 the siblings are ignored."""
    if isinstance(schema, list):
        return [isolate_refs(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: isolate_refs(part) for name, part in schema.items()}
    if "$ref" in parts and len(parts) > 1 and isinstance(parts["$ref"], str):
        return {"allOf": [{"$ref": parts.pop("$ref")}], **parts}
    return parts


JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def export_schemas() -> dict[str, Any]:
    refs, schemas = schema_pool(message_models(bus_participants()), ref_template="#/$defs/{model}")
    return {"$schema": JSON_SCHEMA_DIALECT, "messages": {message: {"$ref": refs[message]} for message in sorted(refs)}, "$defs": schemas}


def schemas_json() -> str:
    return json.dumps(export_schemas(), indent=1, ensure_ascii=False) + "\n"
