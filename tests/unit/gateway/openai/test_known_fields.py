"""Every field of the requests of the installed OpenAI client is known here, and docs/http.md says what becomes of it."""

import re
from pathlib import Path

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams
from pydantic import BaseModel, ValidationError

from gateway.openai.chat_requests import ChatRequest
from gateway.openai.completion_requests import CompletionRequest
from gateway.openai.embeddings import EmbeddingRequest
from gateway.openai.response_requests import ResponseBody

PAGE = Path(__file__).parents[4] / "docs" / "http.md"
ROWS = {"served": "served", "one value": "one value", "no effect on the answer": "no effect", "refused, with what helps instead": "refused"}
ONE_VALUE = {"store", "service_tier", "verbosity", "modalities"}
REQUESTS = [(ChatRequest, ChatParams, 1), (CompletionRequest, CompletionParams, 2), (EmbeddingRequest, EmbeddingCreateParams, 3)]


def treatment(model: type[BaseModel], name: str) -> str:
    description = model.model_fields[name].description or ""
    if name in ONE_VALUE:
        return "one value"
    return "no effect" if description.startswith("Accepted;") else "refused" if description.startswith("Not supported:") else "served"


def documented(column: int) -> dict[str, str]:
    """Of each field in a column of the page's table, the name of its row."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = {ROWS[row[1].strip()]: row[column + 1] for row in rows if row[1].strip() in ROWS}
    assert cells.keys() == set(ROWS.values())
    return {
        name: row for row, cell in cells.items() for name in re.findall(r"`([a-z_]+)`", cell) if name not in {"auto", "default", "medium"}
    }


@pytest.mark.parametrize(("model", "params", "column"), REQUESTS)
def test_fields_of_the_client_are_known_and_documented(model: type[BaseModel], params: type, column: int) -> None:
    known = set(params.__annotations__) | {"stream"} & set(model.model_fields)
    assert known <= model.model_fields.keys()
    assert documented(column) == {name: treatment(model, name) for name in model.model_fields}


def documented_for_responses() -> dict[str, str]:
    """What becomes of each field in the page's table of responses."""
    page = PAGE.read_text()
    rows = [line.split("|") for line in page[page.index("\n| Field | Served |") :].split("\n\n")[0].splitlines() if line.startswith("| `")]
    return {name: row[2].strip() for row in rows for name in re.findall(r"`([a-z_]+)", row[1])}


def test_fields_of_responses_are_known_and_documented() -> None:
    table = documented_for_responses()
    assert set(ResponseParams.__annotations__) <= ResponseBody.model_fields.keys()
    assert table.keys() == ResponseBody.model_fields.keys()
    refused = {name for name, field in ResponseBody.model_fields.items() if (field.description or "").startswith("Not supported")}
    assert {name for name, served in table.items() if served == "a 400 that names the field"} == refused


@pytest.mark.parametrize(
    ("field", "taken", "refused"),
    [
        ("service_tier", ["auto", "default"], "flex"),
        ("text", [{"verbosity": "medium"}], {"verbosity": "low"}),
        ("stream_options", [{"include_obfuscation": False}], {"include_obfuscation": True}),
        ("reasoning", [{"summary": "auto"}], {"summary": "detailed"}),
        ("conversation", [None], "conv_1"),
    ],
)
def test_other_values_of_responses_are_refused(field: str, taken: list[object], refused: object) -> None:
    for value in taken:
        ResponseBody.model_validate({"model": "text", "input": "?", field: value})
    with pytest.raises(ValidationError, match=field):
        ResponseBody.model_validate({"model": "text", "input": "?", field: refused})
