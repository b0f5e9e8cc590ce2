"""Every field of the requests of the installed OpenAI client is known here, and docs/http.md says what becomes of it."""

import re
from pathlib import Path

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from pydantic import BaseModel

from gateway.openai.chat_requests import ChatRequest
from gateway.openai.completion_requests import CompletionRequest
from gateway.openai.embeddings import EmbeddingRequest

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
