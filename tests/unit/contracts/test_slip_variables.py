"""The fields of results that commands read under the same name: each is meant, and is what the command takes."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter

from contracts.image import ImageDone
from contracts.steps import COMMANDS, RESULTS
from contracts.text import TextDone

MEANT = {
    *("images", "metadata", "flagged", "lora_missing", "signature_missing", "signature_left_out", "result_url", "result_urls", "kind"),
    *("job_id", "font_recommendation", "bare_image", "overlay_id", "text_region", "text_color", "large_text", "conversation_id"),
    *("text", "ad_copy_text"),
}
"""Names that a result and a command share because the one is what the other reads. A further one is renamed on one side, or listed."""
SAME_TYPES = {("integer", "number")}
"""What a result may hold beside the command's own type."""

Schema = dict[str, Any]


def shared_fields() -> Iterator[tuple[str, str, str]]:
    """A step with a result, a step with a command, and the name of a field of both. `slip` is set by the bus."""
    for result_step, result in RESULTS.items():
        for command_step, command in COMMANDS.items():
            for name in sorted((result.model_fields.keys() & command.model_fields.keys()) - {"slip"}):
                yield str(result_step), str(command_step), name


def field_schema(model: Any, name: str) -> Any:
    """The JSON schema of one field, with the definitions that it refers to."""
    schema = model.model_json_schema(mode="serialization" if model in RESULTS.values() else "validation")
    return inline(schema["properties"][name], schema.get("$defs", {}))


def inline(schema: Any, definitions: Schema) -> Any:
    """The schema with its references replaced."""
    if isinstance(schema, list):
        return [inline(entry, definitions) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inline(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    return {key: inline(value, definitions) for key, value in schema.items()}


def alternatives(schema: Schema) -> list[Schema]:
    """The types that a schema allows, without null: a result's field without a value is no variable."""
    return [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]


def fits(given: Schema, taken: Schema) -> bool:
    """Whether a command takes every value that a result may hold, as far as types, fixed values and required properties say it."""
    return all(any(fits_one(one, other) for other in alternatives(taken)) for one in alternatives(given))


def fits_one(given: Schema, taken: Schema) -> bool:
    if "type" not in taken and "const" not in taken:
        return True
    if given.get("type") != taken.get("type") and (given.get("type"), taken.get("type")) not in SAME_TYPES:
        return False
    if fixed(taken) and not (fixed(given) and set(fixed(given)) <= set(fixed(taken))):
        return False
    if taken["type"] == "array":
        return fits(given.get("items", {}), taken.get("items", {}))
    if taken["type"] == "object" and "properties" in taken:
        properties: Schema = given.get("properties", {})
        common = properties.keys() & taken["properties"].keys()
        return properties.keys() >= set(taken.get("required", ())) and all(
            fits(properties[name], taken["properties"][name]) for name in common
        )
    return True


def fixed(schema: Schema) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def test_every_shared_name_is_meant() -> None:
    assert {name for _, _, name in shared_fields()} == MEANT


@pytest.mark.parametrize(("result", "command", "name"), list(shared_fields()))
def test_shared_field_has_a_type_that_the_command_takes(result: str, command: str, name: str) -> None:
    """Else the next command of a slip is a dead letter."""
    given, taken = field_schema(RESULTS[result], name), field_schema(COMMANDS[command], name)
    assert fits(given, taken), f"{name} of the result of {result} is no {name} of the command {command}: rename one of the two"


@pytest.mark.parametrize(
    ("model", "name", "taken"),
    [
        (TextDone, "logprobs", bool),
        (TextDone, "text", bool),
        (TextDone, "finish_reason", int),
        (TextDone, "usage", list[int]),
        (ImageDone, "images", list[str]),
        (ImageDone, "images", dict[str, str]),
    ],
)
def test_another_type_is_found(model: Any, name: str, taken: Any) -> None:
    assert not fits(field_schema(model, name), TypeAdapter(taken).json_schema())
