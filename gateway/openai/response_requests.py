"""OpenAI's Responses request, and the command built from it. What is not supported is a 400 that names it; nothing is ignored."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue

from contracts.responses import MAX_ITEMS, CreateResponse, Effort, ResponseRequest, TextFormat
from contracts.text import Tool, ToolName
from gateway.openai.errors import NO_RETRY
from gateway.openai.response_items import Fields, StrictModel, parse, to_items, unsupported
from gateway.openai.text_requests import StreamOptions
from gateway.problems import HttpProblem
from gateway.strict_model import HttpModel
from gateway.text.client import lacks_vision

RESPONSE_REQUEST_EXAMPLE: dict[str, JsonValue] = {"model": "text", "input": "Hello!", "max_output_tokens": 64}
INCLUDABLE = "message.output_text.logprobs"
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


def _refuse(value: Any) -> None:
    if value not in (None, [], {}):
        raise ValueError("it is not supported here: leave it out")


Unsupported = Annotated[None, BeforeValidator(_refuse), Field(description="Not supported.")]


class JsonSchemaFormat(StrictModel):
    type: Literal["json_schema"]
    name: str = Field(max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")
    json_schema: Fields = Field(alias="schema")
    strict: bool | None = None
    description: str | None = Field(None, max_length=20_000)


class PlainFormat(StrictModel):
    type: Literal["text", "json_object"]


class TextConfiguration(StrictModel):
    """`verbosity`: engines know no other than the middle one."""

    format: Fields | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(StrictModel):
    """`summary`: what the model thought is returned as it is, never summarised; `auto` takes what there is."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class FunctionTool(StrictModel):
    type: Literal["function"]
    name: ToolName
    description: str | None = Field(None, max_length=20_000)
    parameters: Fields | None = None
    strict: bool | None = None


class NamedTool(StrictModel):
    type: Literal["function"]
    name: ToolName


class ResponseBody(HttpModel):
    """A Responses request. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [RESPONSE_REQUEST_EXAMPLE]})

    model: str = Field(max_length=255, description="The served model, one of its LoRA adapters, or `text` for whatever is served.")
    input: str | Annotated[list[Fields], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        description="A text, or OpenAI's items: messages, whose pictures are https URLs or base64, function calls and their outputs, "
        "reasoning, references to stored items."
    )
    instructions: str | None = Field(None, description="A message of the system for this response; later ones do not inherit it.")
    previous_response_id: str | None = Field(None, max_length=255, description="A stored response, whose conversation this one continues.")
    background: bool | None = None
    store: bool | None = Field(None, description="Default: true. With false nothing of it is kept.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    tools: list[Fields] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | Fields | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfiguration | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = Field(None, max_length=16)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["disabled", "auto"] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    user: str | None = Field(None, max_length=1000)
    safety_identifier: str | None = Field(None, max_length=1000)
    prompt_cache_key: str | None = Field(None, max_length=1000, description="Prefixes are cached without it.")
    service_tier: Literal["auto", "default"] | None = None
    access_programs: Unsupported = None
    conversation: Unsupported = None
    context_management: Unsupported = None
    image: Unsupported = None
    max_tool_calls: Unsupported = None
    moderation: Unsupported = None
    prompt: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None

    def check(self, max_chars: int) -> None:
        """Raises HttpProblem(400, 413)."""
        check_include(self.include or (), "include")
        if self.background and self.store is False:
            raise HttpProblem(400, "invalid-request", "background needs store: a response in the background is stored", param="background")
        if self.top_logprobs and not self.include:
            raise HttpProblem(400, "invalid-request", f"top_logprobs needs {INCLUDABLE} in include", param="top_logprobs")
        lengths = self.text_lengths()
        if (length := sum(lengths.values())) > max_chars:
            longest = max(lengths, key=lambda name: lengths[name])
            raise HttpProblem(413, "message-too-large", f"the request has {length} characters, {max_chars} are allowed", param=longest)

    def text_lengths(self) -> dict[str, int]:
        """The characters of each field, without pictures: a longer body is allowed for those only."""
        lengths = {name: text_length(value) for name, value in self.model_dump(exclude_unset=True).items()}
        return lengths | {"input": lengths["input"] - picture_length(self.input)}

    async def command(self, request: Request, response_id: str, model: str, lora: str | None, deadline: datetime) -> CreateResponse:
        """The step's command. Pictures are stored. Raises HttpProblem(400, 413, 501, 503)."""
        tool_choice, tool_name = self.chosen_tool()
        fields = self.model_dump(
            include={"instructions", "background", "store", "max_output_tokens", "temperature", "top_p", "parallel_tool_calls"}
            | {"top_logprobs", "truncation", "metadata", "user", "safety_identifier", "prompt_cache_key"},
            exclude_none=True,
        )
        response_request = ResponseRequest(
            model=model,
            previous_response_id=self.checked_previous_id(),
            tools=[to_tool(index, tool) for index, tool in enumerate(self.tools or ())],
            tool_choice=tool_choice,
            tool_name=tool_name,
            text_format=self.text_format(),
            effort=self.reasoning.effort if self.reasoning else None,
            logprobs=INCLUDABLE in (self.include or ()),
            **fields,
        )
        await self.check_vision(request)
        items = await to_items(request, self.input)
        return CreateResponse(response_id=response_id, request=response_request, input=items, lora_adapter=lora, deadline=deadline)

    def checked_previous_id(self) -> str | None:
        """An id that is none of ours is unknown. Raises HttpProblem(400)."""
        given = self.previous_response_id
        if given is not None and not is_response_id(given):
            message = f"Previous response with id {given[:80]!r} not found."
            raise HttpProblem(400, "previous-response-not-found", message, param="previous_response_id")
        return given

    def chosen_tool(self) -> tuple[Literal["none", "auto", "required"], str | None]:
        """`tool_choice`, and the tool that it names. Raises HttpProblem(400)."""
        if not isinstance(self.tool_choice, dict):
            return self.tool_choice or "auto", None
        if self.tool_choice.get("type") != "function":
            kind = str(self.tool_choice.get("type"))[:80]
            raise unsupported("tool_choice.type", f"choices of the type {kind!r}", ("none", "auto", "required", "a function"))
        name = parse(NamedTool, self.tool_choice, "tool_choice").name
        if name not in [tool.get("name") for tool in self.tools or ()]:
            raise HttpProblem(400, "invalid-request", f"tool_choice names {name!r}, which is none of tools", param="tool_choice")
        return "auto", name

    def text_format(self) -> TextFormat:
        """Raises HttpProblem(400)."""
        given = self.text.format if self.text and self.text.format else {"type": "text"}
        if given.get("type") == "json_schema":
            schema = parse(JsonSchemaFormat, given, "text.format")
            return TextFormat.model_validate(schema.model_dump())
        return TextFormat(type=parse(PlainFormat, given, "text.format").type)

    async def check_vision(self, request: Request) -> None:
        """Raises HttpProblem(501) when an item has a picture, and the served model reads none."""
        places = [f"input.{index}" for index, item in enumerate(self.input if isinstance(self.input, list) else ()) if has_picture(item)]
        if places and await lacks_vision(request):
            raise HttpProblem(501, "vision-unsupported", "the served model reads no images: send text only", NO_RETRY, param=places[0])


def to_tool(index: int, fields: Fields) -> Tool:
    if fields.get("type") != "function":
        raise unsupported(f"tools.{index}.type", f"tools of the type {str(fields.get('type'))[:80]!r}", ("functions",))
    tool = parse(FunctionTool, fields, f"tools.{index}")
    return Tool(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)


def check_include(names: Sequence[str], param: str) -> None:
    """Raises HttpProblem(400)."""
    if other := next((name for name in names if name != INCLUDABLE), None):
        raise unsupported(param, f"includes such as {other[:80]!r}", (INCLUDABLE,))


def is_response_id(text: str) -> bool:
    return len(text) == 37 and text.startswith("resp_") and all(character in "0123456789abcdef" for character in text[5:])


def parts_of(item: Fields) -> list[Any]:
    return [part for name in ("content", "output") if isinstance(item.get(name), list) for part in item[name]]


def has_picture(item: Fields) -> bool:
    return any(map(is_picture, parts_of(item)))


def is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "input_image"


def text_length(value: Any) -> int:
    """The characters of a JSON value, with its names and numbers."""
    match value:
        case dict():
            return sum(len(name) + text_length(other) for name, other in value.items())
        case list():
            return sum(map(text_length, value))
        case _:
            return len(value) if isinstance(value, str) else len(str(value))


def picture_length(value: Any) -> int:
    """The characters of the pictures whose bytes an input holds: they are stored, and not sent to the worker."""
    urls = [part.get("image_url") for item in value for part in parts_of(item) if is_picture(part)] if isinstance(value, list) else []
    return sum(len(url) for url in urls if isinstance(url, str) and url[:5].lower() == "data:")
