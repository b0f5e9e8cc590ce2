"""The answers of OpenAI's Responses API, for the description of the API. The worker makes them; see `contracts/responses.py`."""

from typing import Any, Literal

from pydantic import Field

from contracts.responses import ResponseStatus
from gateway.strict_model import HttpModel


class InputTokensDetails(HttpModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(HttpModel):
    reasoning_tokens: int


class ResponseUsage(HttpModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(HttpModel):
    code: str = Field(examples=["server_error"])
    message: str


class IncompleteDetails(HttpModel):
    reason: str = Field(examples=["max_output_tokens"])


class ResponseObject(HttpModel):
    """A response. Items of `output`: messages, function calls, reasoning."""

    id: str = Field(examples=["resp_0123456789abcdef0123456789abcdef"])
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    background: bool
    store: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    temperature: float
    top_p: float
    top_logprobs: int
    truncation: Literal["auto", "disabled"]
    max_output_tokens: int | None
    max_tool_calls: int | None
    service_tier: Literal["default"]
    prompt_cache_key: str | None
    safety_identifier: str | None
    user: str | None
    usage: ResponseUsage | None
    left_out: list[str] | None = Field(None, description="Parameters of the request that the model's server does not take; absent: none.")


class InputItemList(HttpModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(HttpModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]
