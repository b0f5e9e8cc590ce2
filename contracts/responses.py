"""Responses in OpenAI's form, which the worker generates, stores and streams; and the commands and queries for them.

A tenant sees only its own. Events are stored as they are sent to clients, each with its `sequence_number`, without gaps from 0.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.fault import Fault
from contracts.text import Picture, TokenLogprob, Tool, ToolName
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

MAX_ITEMS = 1000
"""Items of one input, and of a conversation with all that precedes it."""
MAX_PARTS = 1000
"""Parts of one item."""
MAX_WAIT_SECONDS = 5.0
"""How long a query waits for what is not there yet."""

ResponseId = Annotated[str, Field(pattern=r"^resp_[0-9a-f]{32}$", examples=["resp_0123456789abcdef0123456789abcdef"])]
ItemId = Annotated[str, Field(max_length=255)]


def response_unknown(response_id: str) -> str:
    """The message for an unknown id, and for one of another tenant: a caller must not be able to tell them apart."""
    return f"Response with id {response_id[:80]!r} not found."


class ItemPart(WireModel):
    """A part of an item. `text`: of a refusal too."""

    type: Literal["input_text", "input_image", "output_text", "refusal"]
    text: str = ""
    picture: Picture | None = None
    detail: Literal["auto", "low", "high", "original"] = "auto"
    logprobs: list[TokenLogprob] = Field(default_factory=list)

    def to_openai(self) -> dict[str, Any]:
        match self.type:
            case "input_image":
                url = self.picture.url if self.picture else None
                return {"type": self.type, "detail": self.detail, "file_id": None, "image_url": url}
            case "output_text":
                logprobs = [token_fields(token) for token in self.logprobs]
                return {"type": self.type, "annotations": [], "logprobs": logprobs, "text": self.text}
            case "refusal":
                return {"type": self.type, "refusal": self.text}
            case _:
                return {"type": self.type, "text": self.text}


def token_fields(token: TokenLogprob) -> dict[str, Any]:
    """A token and its alternatives, in OpenAI's form. Bytes that are not known are those of the text."""
    both = [
        {"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode()) if one.bytes is None else one.bytes}
        for one in (token, *token.top)
    ]
    return both[0] | {"top_logprobs": both[1:]}


class Item(WireModel):
    """One item of a conversation. Which fields are set depends on its type, as in OpenAI's API. In an input, an image without a picture is
    the one at the same place of the stored item with this id.

    `thoughts` and `summary`: of `reasoning`. An `item_reference` has only the id of a stored item, which takes its place.
    """

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"]
    id: ItemId
    status: ItemStatus = "completed"
    role: Literal["user", "assistant", "system", "developer"] = "user"
    content: list[ItemPart] = Field(default_factory=list, max_length=MAX_PARTS)
    call_id: str = Field("", max_length=256)
    name: str = Field("", max_length=256)
    arguments: str = ""
    output: str | list[ItemPart] = ""
    summary: list[str] = Field(default_factory=list, max_length=1000)
    thoughts: list[str] = Field(default_factory=list, max_length=1000)

    @property
    def parts(self) -> list[ItemPart]:
        """Those of the content and of the output."""
        return [*self.content, *(self.output if isinstance(self.output, list) else ())]

    @property
    def claims(self) -> list[Claim]:
        return [part.picture.claim for part in self.parts if part.picture and part.picture.claim]

    def to_openai(self) -> dict[str, Any]:
        match self.type:
            case "message":
                fields: dict[str, Any] = {"role": self.role, "content": [part.to_openai() for part in self.content]}
            case "function_call":
                fields = {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
            case "function_call_output":
                output = self.output if isinstance(self.output, str) else [part.to_openai() for part in self.output]
                fields = {"call_id": self.call_id, "output": output}
            case "reasoning":
                fields = {
                    "summary": [{"type": "summary_text", "text": text} for text in self.summary],
                    "content": [{"type": "reasoning_text", "text": text} for text in self.thoughts],
                    "encrypted_content": None,
                }
            case _:
                return {"id": self.id, "type": self.type}
        return {"id": self.id, "type": self.type, "status": self.status} | fields


class TextFormat(WireModel):
    """The form of the answer. All but the type belong to `json_schema`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = Field(None, max_length=64)
    json_schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = Field(None, max_length=20_000)

    def to_openai(self) -> dict[str, Any]:
        if self.type != "json_schema":
            return {"type": self.type}
        return {
            "type": self.type,
            "name": self.name,
            "schema": self.json_schema,
            "strict": self.strict,
            "description": self.description,
        }


class ResponseRequest(WireModel):
    """What a response was requested with. It is part of the response, so that its client sees what was applied."""

    model: str = Field(max_length=255)
    instructions: str | None = Field(None, max_length=1 << 20)
    previous_response_id: ResponseId | None = None
    background: bool = False
    store: bool = True
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    tool_choice: Literal["none", "auto", "required"] = "auto"
    tool_name: ToolName | None = None
    parallel_tool_calls: bool = True
    text_format: TextFormat = Field(default_factory=TextFormat)
    effort: Effort | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    truncation: Literal["disabled", "auto"] = "disabled"
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    user: str | None = Field(None, max_length=1000)
    safety_identifier: str | None = Field(None, max_length=1000)
    prompt_cache_key: str | None = Field(None, max_length=1000)

    def to_openai(self) -> dict[str, Any]:
        choice = self.tool_choice if self.tool_name is None else {"type": "function", "name": self.tool_name}
        tools = [tool.model_dump(include={"name", "description", "parameters", "strict"}) | {"type": "function"} for tool in self.tools]
        same = self.model_dump(exclude={"tools", "tool_choice", "tool_name", "text_format", "effort", "logprobs"})
        return same | {
            "tools": tools,
            "tool_choice": choice,
            "text": {"format": self.text_format.to_openai(), "verbosity": "medium"},
            "reasoning": {"effort": self.effort, "summary": None},
            "max_tool_calls": None,
            "service_tier": "default",
        }


class CreateResponse(Command):
    """Store a response that is to be generated; `response.run` generates it. The same id twice is the same response.

    Its faults: `previous-response-unknown`, `previous-response-unfinished`, `item-unknown`, `item-repeated`, `call-unknown`,
    `conversation-too-long`, `invalid-message`, `database-missing`, `database-away`. `lora_adapter`: of the worker, where `model` names
    one. After `deadline` it has failed, unless it has ended.
    """

    response_id: ResponseId
    request: ResponseRequest
    input: list[Item] = Field(max_length=MAX_ITEMS)
    lora_adapter: str | None = Field(None, max_length=255)
    deadline: datetime


class RunResponse(Command):
    """Generate a stored response. One that has ended, or was deleted, is left as it is."""

    response_id: ResponseId


class ResponseRan(Result):
    """A response has been generated; its text is stored, and not in this result. `device_seconds`: as in the text step's result."""

    response_id: str
    status: ResponseStatus | None = Field(None, description="None: it was deleted.")
    prompt_tokens: int = 0
    completion_tokens: int = 0
    device_seconds: float | None = None


class GetResponse(Command):
    """Get a response. With `wait_seconds`, once it has ended, or as it is after that time. The fault for an unknown id is
    `response-unknown`; one that is not stored is unknown to all but the request that created it (`unstored`).
    """

    response_id: str = Field(max_length=255)
    unstored: bool = False
    wait_seconds: float = Field(0.0, ge=0, le=MAX_WAIT_SECONDS)


class StoredResponse(Result):
    """`response`: in OpenAI's form. `fault`: of one that failed, with the code of the step that failed."""

    response: dict[str, Any]
    status: ResponseStatus
    fault: Fault | None = None


class GetResponseEvents(Command):
    """Get the events after the number `after`, in order; at most as many as one message may carry. Without any it waits."""

    response_id: str = Field(max_length=255)
    after: int = Field(-1, ge=-1, le=2**31 - 1)
    unstored: bool = False
    wait_seconds: float = Field(0.0, ge=0, le=MAX_WAIT_SECONDS)


class ResponseEvents(Result):
    """`ended`: no event comes after these."""

    events: list[dict[str, Any]]
    ended: bool


class CancelResponse(Command):
    """End a response as cancelled, unless it has ended. Without `foreground` one that is not in the background is the fault
    `response-not-background`.
    """

    response_id: str = Field(max_length=255)
    foreground: bool = False


class DeleteResponse(Command):
    """Delete a response with its items and events, whether it has ended or not."""

    response_id: str = Field(max_length=255)


class ResponseDeleted(Result):
    response_id: str


class ListInputItems(Command):
    """List the items of a response's own input."""

    response_id: str = Field(max_length=255)
    order: Literal["asc", "desc"] = "desc"
    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=255, description="The id of the last item of the page before.")


class InputItems(Result):
    """`items`: in OpenAI's form."""

    items: list[dict[str, Any]]
    has_more: bool
