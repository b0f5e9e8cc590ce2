"""The OpenAPI document shows an example of everything, and every example is one that its schema allows."""

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
    return [content["example"]] if "example" in content else [named["value"] for named in content.get("examples", {}).values()]


def test_every_body_and_every_answer_has_an_example_that_its_schema_allows(document: dict[str, Any]) -> None:
    wrong = []
    for status, media_type, content in iter_contents(document):
        validator = Draft202012Validator(content.get("schema", {}) | {"components": document["components"]})
        shown = examples_in(content)
        wrong += [f"{status} {media_type} {content['schema']}: no example"] if not shown else []
        wrong += [f"{status} {content['schema']}: {error.message}" for example in shown for error in validator.iter_errors(example)]
    assert not wrong, "write an example in gateway/docs/openapi_examples.py: " + "; ".join(wrong[:5])


def test_every_response_has_schema(document: dict[str, Any]) -> None:
    """A status without a schema would need no example."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                empty = [media for media, content in response.get("content", {"none": {}}).items() if not content.get("schema")]
                assert not empty or status in {"204", "304"} or not path.startswith(("/jobs", "/dead", "/api", "/predict", "/health")), (
                    f"{method} {path} {status}"
                )


def test_every_written_example_is_shown(document: dict[str, Any]) -> None:
    """None is left over from a schema that is gone."""
    assert set(EXAMPLES) <= set(document["components"]["schemas"])


def test_an_order_has_an_example_of_each_kind(document: dict[str, Any]) -> None:
    body = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert [example["kind"] for example in examples_in(body)] == ["image_order", "ad", "itinerary"]


def test_problem_example_has_own_status(document: dict[str, Any]) -> None:
    for status, media_type, content in iter_contents(document):
        if media_type == PROBLEM_MEDIA_TYPE:
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
