"""Every request and response in the OpenAPI document has an example that its schema allows."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bus.settings import BusSettings
from gateway.app import create_app
from gateway.docs.openapi import PROBLEM_MEDIA_TYPE, add_examples, iter_contents
from gateway.docs.openapi_examples import EXAMPLES
from gateway.settings import GatewaySettings


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(BusSettings.model_validate({"amqp_url": "amqp://x"}), GatewaySettings()).openapi()


def examples_in(content: dict[str, Any]) -> list[Any]:
    return [content["example"]] if "example" in content else [example["value"] for example in content.get("examples", {}).values()]


def test_every_content_has_a_valid_example(document: dict[str, Any]) -> None:
    errors = []
    assert len(list(iter_contents(document))) > 10
    for status, media_type, content in iter_contents(document):
        validator = Draft202012Validator(content.get("schema", {}) | {"components": document["components"]})
        examples = examples_in(content)
        errors += [f"{status} {media_type} {content['schema']}: no example"] if not examples else []
        errors += [f"{status} {content['schema']}: {error.message}" for example in examples for error in validator.iter_errors(example)]
    assert not errors, "write an example in gateway/docs/openapi_examples.py: " + "; ".join(errors[:5])


WITHOUT_SCHEMA = {
    *("/generate", "/vision", "/multimodal", "/conversations", "/conversations/{conversation_id}"),  # Errors of the CloudLLM API.
    "/asyncapi.yaml",
}


def test_every_response_has_schema(document: dict[str, Any]) -> None:
    """A response without a schema needs no example. The paths with such responses are listed above."""
    responses = [
        (path, response)
        for path, operations in document["paths"].items()
        for operation in operations.values()
        for response in operation["responses"].values()
    ]
    assert {path for path, response in responses if not has_schema(response)} == WITHOUT_SCHEMA


def has_schema(response: dict[str, Any]) -> bool:
    content = response.get("content", {})
    return bool(content) and all(definition.get("schema") for definition in content.values())


def test_every_written_example_is_used(document: dict[str, Any]) -> None:
    assert set(EXAMPLES) <= set(document["components"]["schemas"])


def test_every_kind_of_order_has_an_example(document: dict[str, Any]) -> None:
    body = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert [example["kind"] for example in examples_in(body)] == ["image_order", "ad", "itinerary"]


def test_problem_example_has_own_status(document: dict[str, Any]) -> None:
    problems = [(status, content) for status, media_type, content in iter_contents(document) if media_type == PROBLEM_MEDIA_TYPE]
    assert len(problems) > 10
    for status, content in problems:
        assert str(content["example"]["status"]) == status


def test_existing_example_is_kept_and_missing_one_built() -> None:
    schema = {
        "type": "object",
        "required": ["name", "size", "kind", "parts", "when"],
        "properties": {
            "name": {"type": "string", "examples": ["fox"]},
            "size": {"type": "integer", "minimum": 3},
            "kind": {"enum": ["a", "b"]},
            "parts": {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
            "when": {"type": "string", "format": "date-time"},
            "left_out": {"type": "string"},
        },
    }
    responses = {"200": {"content": {"a/b": {"schema": schema}}}, "201": {"content": {"a/b": {"schema": schema, "example": 7}}}}
    add_examples({"paths": {"/": {"get": {"responses": responses}}}})
    assert responses["200"]["content"]["a/b"]["example"] == {
        "name": "fox",
        "size": 3,
        "kind": "a",
        "parts": [True],
        "when": "2026-11-21T03:00:00Z",
    }
    assert responses["201"]["content"]["a/b"]["example"] == 7
