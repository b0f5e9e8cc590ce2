"""The OpenAPI document, with an example of every request and response body."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from gateway.docs.openapi_examples import BY_MEDIA_TYPE, EXAMPLES, example_problem
from gateway.middleware.public_url import public_origin, public_prefix

Json = dict[str, Any]
PROBLEM_MEDIA_TYPE = "application/problem+json"

router = APIRouter(include_in_schema=False)


class DocumentedApp(FastAPI):
    def openapi(self) -> Json:
        cached = self.openapi_schema is not None
        document = super().openapi()
        return document if cached else add_examples(document)


@router.get("/openapi.json")
async def openapi_document(request: Request) -> JSONResponse:
    """The document, whose paths are below the address at which clients reach this gateway."""
    base = public_origin(request.scope) + public_prefix(request.scope)
    return JSONResponse(request.app.openapi() | ({"servers": [{"url": base}]} if base else {}))


def add_examples(document: Json) -> Json:
    """The same document, with an example in every content that had none."""
    schemas = document.get("components", {}).get("schemas", {})
    for status, media_type, content in iter_contents(document):
        if not content.keys() & {"example", "examples"}:
            content |= example_for(status, media_type, content.get("schema", {}), schemas)
    return document


def iter_contents(document: Json) -> Iterator[tuple[str, str, Json]]:
    """The content of each request and response: its status (`request` for a request), its media type, its definition."""
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            yield "request", media_type, content
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                yield status, media_type, content


def example_for(status: str, media_type: str, schema: Json, schemas: Json) -> Json:
    if media_type == PROBLEM_MEDIA_TYPE and status.isdecimal():
        return {"example": example_problem(int(status))}
    if "oneOf" in schema:
        return {"examples": {ref_name(part).lower(): {"value": build_example(part, schemas)} for part in schema["oneOf"]}}
    return {"example": BY_MEDIA_TYPE.get(media_type) or build_example(schema, schemas)}


def ref_name(schema: Json) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def build_example(schema: Json, schemas: Json) -> Any:
    """The example from EXAMPLES; else the schema's own example, first enum value, default, first alternative, or required fields."""
    if name := ref_name(schema):
        return EXAMPLES[name] if name in EXAMPLES else build_example(schemas[name], schemas)
    for keyword in ("examples", "enum"):
        if schema.get(keyword):
            return schema[keyword][0]
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    for keyword in ("anyOf", "oneOf", "allOf"):
        if schema.get(keyword):
            return build_example(schema[keyword][0], schemas)
    return example_of_type(schema, schemas)


def example_of_type(schema: Json, schemas: Json) -> Any:
    match schema.get("type"):
        case "object":
            required = set(schema.get("required", ()))
            return {name: build_example(part, schemas) for name, part in schema.get("properties", {}).items() if name in required}
        case "array":
            return [build_example(schema["items"], schemas)] if schema.get("minItems") else []
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        case "boolean":
            return True
        case "string":
            return {"date-time": "2026-11-21T03:00:00Z", "uri": "https://media.example/"}.get(schema.get("format", ""), "text")
        case _:
            return {}
