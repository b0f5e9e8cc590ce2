"""The messages of OpenAI's chat request, in the forms in which clients keep their histories, and the messages of the command."""

from collections.abc import Iterator
from typing import Any, Literal

from fastapi import Request
from pydantic import Field, field_validator

from gateway.openai.strict_body import NoEffect, StrictBody, check_fields_of_type, unsupported
from gateway.problems import HttpProblem
from gateway.text.uploads import decode_base64, image_media_type, store_upload

ROLES = {"developer": "system", "function": "tool"}
TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
IMAGE_TYPES = frozenset({"image_url", "input_image"})
REASONING_TYPES = frozenset({"thinking", "reasoning", "redacted_thinking"})
PART_FIELDS = {
    "text": TEXT_TYPES | REASONING_TYPES,
    "refusal": frozenset({"refusal"}),
    "thinking": REASONING_TYPES,
    "reasoning": REASONING_TYPES,
    "image_url": IMAGE_TYPES,
}
"""Which types of a part have a field."""
MESSAGE_FIELDS = {"tool_call_id": frozenset({"tool", "function"})} | dict.fromkeys(
    ("refusal", "tool_calls", "function_call", "reasoning_content", "reasoning"), frozenset({"assistant"})
)
"""Which roles have a field."""
MAX_URL_CHARS = 2048
"""As in the command."""
MAX_CALLS = 128
NO_ARGUMENTS = "{}"


class ImageUrl(StrictBody):
    """`detail` has no effect: the model's limits decide the size at which it sees the image."""

    url: str = Field(min_length=1, description="`data:image/…;base64,…` or `https://…`.")
    detail: Literal["auto", "low", "high", "original"] = "auto"

    @property
    def is_address(self) -> bool:
        return self.url[:8].lower() == "https://"


class ContentPart(StrictBody):
    """A text, an image, or what an assistant wrote in another form: a refusal, which is a text, or its reasoning."""

    type: Literal["text", "input_text", "output_text", "refusal", "image_url", "input_image", "thinking", "reasoning", "redacted_thinking"]
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None
    reasoning: str | None = None
    image_url: ImageUrl | None = None
    id: NoEffect = None
    index: NoEffect = None
    extras: NoEffect = None
    detail: NoEffect = None
    annotations: NoEffect = None
    logprobs: NoEffect = None
    cache_control: NoEffect = None
    prompt_cache_breakpoint: NoEffect = None
    signature: NoEffect = None
    data: NoEffect = None

    @field_validator("image_url", mode="before")
    @classmethod
    def accept_plain_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @property
    def is_image(self) -> bool:
        return self.type in IMAGE_TYPES

    @property
    def words(self) -> str | None:
        """None for an image, for reasoning, and where the field that its type names is missing."""
        return self.refusal if self.type == "refusal" else self.text if self.type in TEXT_TYPES else None

    @property
    def thought(self) -> str | None:
        """None for all but reasoning."""
        texts = filter(None, (self.reasoning, self.thinking, self.text))
        return "\n".join(dict.fromkeys(texts)) if self.type in REASONING_TYPES else None


class CalledFunction(StrictBody):
    """`arguments`: JSON. `parsed_arguments`: the same as OpenAI's clients keep it beside, which have parsed it."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str = NO_ARGUMENTS
    parsed_arguments: NoEffect = None


class CalledTool(StrictBody):
    id: str | None = Field(None, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: NoEffect = None
    provider_specific_fields: NoEffect = None


class ChatMessage(StrictBody):
    """`content` may be null or absent in a message of the assistant, as clients keep a refusal, a function call or an empty answer.

    The fields without effect are those that clients and servers leave in a history.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    tool_calls: list[CalledTool] = Field(default_factory=list, max_length=MAX_CALLS)
    function_call: CalledFunction | None = None
    tool_call_id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256, description="Of the roles `tool` and `function`: the function; else without effect.")
    reasoning_content: str | None = Field(None, description="Of the role `assistant`: what it thought before, as in an answer.")
    reasoning: str | None = Field(None, description="Another name of `reasoning_content`.")
    audio: unsupported("send text and images") = None  # type: ignore[valid-type]
    images: unsupported("send them as parts of the content", []) = None  # type: ignore[valid-type]
    annotations: NoEffect = None
    parsed: NoEffect = None
    reasoning_details: NoEffect = None
    thinking_blocks: NoEffect = None
    provider_specific_fields: NoEffect = None
    cache_control: NoEffect = None

    @property
    def parts(self) -> list[ContentPart]:
        return self.content if isinstance(self.content, list) else []

    @property
    def thoughts(self) -> str:
        parts = "\n".join(part.thought for part in self.parts if part.thought)
        return self.reasoning_content or self.reasoning or parts

    @property
    def called(self) -> list[CalledTool]:
        """The calls; one in the form before `tool_calls` is among them."""
        return [*self.tool_calls, *([CalledTool(function=self.function_call)] if self.function_call else [])]

    @property
    def texts(self) -> Iterator[str]:
        """All that a command repeats, but for the pictures in the request."""
        yield from [self.content] if isinstance(self.content, str) else (part.words or "" for part in self.parts)
        yield from (part.image_url.url for part in self.parts if part.image_url and part.image_url.is_address)
        yield from (self.refusal or "", self.thoughts, self.name or "", self.tool_call_id or "")
        for call in self.called:
            yield from (call.id or "", call.function.name, call.function.arguments)


class CallHistory:
    """The calls of a chat so far: their functions by id, and those without a result."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._open: list[str] = []

    def add(self, call: CalledTool, location: str) -> dict[str, Any]:
        """A call of the command. One without an id has its place in the request as one."""
        call_id = call.id or location.replace(".", "_")
        self._names[call_id] = call.function.name
        self._open.append(call_id)
        return {"id": call_id, "name": call.function.name, "arguments": call.function.arguments or NO_ARGUMENTS}

    def result_fields(self, message: ChatMessage, location: str) -> dict[str, Any]:
        """Whose result a message is. One that names no call is that of the first without a result. Raises HttpProblem(400) without one."""
        call_id = message.tool_call_id or next((one for one in self._open if message.name in (None, self._names[one])), None)
        if call_id is None:
            detail = "tool_call_id is missing: it names the call, in an earlier message of the assistant, whose result this is"
            raise HttpProblem(400, "invalid-request", detail, param=f"{location}.tool_call_id")
        if call_id in self._open:
            self._open.remove(call_id)
        name = message.name or self._names.get(call_id)
        return {"tool_call_id": call_id} | ({"name": name} if name else {})


async def to_messages(request: Request, messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """The messages of the command. Images are stored. Raises HttpProblem(400, 413, 503)."""
    calls = CallHistory()
    return [await to_message_fields(request, f"messages.{index}", message, calls) for index, message in enumerate(messages)]


async def to_message_fields(request: Request, location: str, message: ChatMessage, calls: CallHistory) -> dict[str, Any]:
    """`location`: of the message in the request, for errors. Raises HttpProblem(400, 413, 503)."""
    check_fields_of_type(message, MESSAGE_FIELDS, location, "role")
    if message.content is None and message.role != "assistant":
        detail = f"a message of the role {message.role} needs a content"
        raise HttpProblem(400, "invalid-request", detail, param=f"{location}.content")
    fields: dict[str, Any] = {
        "role": ROLES.get(message.role, message.role),
        "content": await to_content(request, location, message),
    }
    if message.role == "assistant":
        called = [calls.add(call, f"{location}.tool_calls.{position}") for position, call in enumerate(message.called)]
        return fields | ({"tool_calls": called} if called else {}) | ({"reasoning": message.thoughts} if message.thoughts else {})
    return fields | calls.result_fields(message, location) if fields["role"] == "tool" else fields


async def to_content(request: Request, location: str, message: ChatMessage) -> str | list[dict[str, Any]]:
    """Raises HttpProblem(400, 413, 503)."""
    for position, part in enumerate(message.parts):
        check_part(part, message.role, f"{location}.content.{position}")
    if not isinstance(message.content, list):
        return "\n".join(filter(None, (message.content, message.refusal)))
    parts = [
        await to_part_fields(request, f"{location}.content.{position}", part)
        for position, part in enumerate(message.content)
        if part.type not in REASONING_TYPES
    ]
    return [*parts, *([{"text": message.refusal}] if message.refusal else [])] or ""


def check_part(part: ContentPart, role: str, location: str) -> None:
    """Raises HttpProblem(400) for what would have no effect."""
    check_fields_of_type(part, PART_FIELDS, location)
    if part.type in REASONING_TYPES and role != "assistant":
        detail = f"a part of the type {part.type} belongs to the role assistant, not {role}"
        raise HttpProblem(400, "invalid-request", detail, param=f"{location}.type")


async def to_part_fields(request: Request, location: str, part: ContentPart) -> dict[str, Any]:
    """`location`: of the part in the request, for errors. Raises HttpProblem(400, 413, 503)."""
    if part.words is not None:
        return {"text": part.words}
    if part.image_url is None:
        field = "image_url" if part.is_image else "refusal" if part.type == "refusal" else "text"
        raise HttpProblem(400, "invalid-request", f"a part of the type {part.type} needs the field {field}", param=f"{location}.{field}")
    return {"picture": await to_picture(request, f"{location}.image_url.url", part.image_url)}


async def to_picture(request: Request, location: str, image: ImageUrl) -> dict[str, Any]:
    """The `url` of a picture, or the `claim` on what a `data:` URL holds. `location`: of the URL, for errors.

    Raises HttpProblem(400, 413, 501, 503).
    """
    if image.is_address:
        if len(image.url) > MAX_URL_CHARS:
            detail = f"the URL has {len(image.url)} characters, {MAX_URL_CHARS} are allowed: send the image as a data: URL"
            raise HttpProblem(400, "invalid-image-url", detail, param=location)
        return {"url": image.url}
    if image.url[:5].lower() != "data:":
        raise HttpProblem(400, "invalid-image-url", "an image_url is an https:// URL or a data: URL", param=location)
    data = await decode_base64(request, image.url)
    media_type = image_media_type(data)
    if media_type is None:
        raise HttpProblem(400, "image-unreadable", "the image is not PNG, JPEG, WebP, GIF or BMP", param=location)
    return await store_upload(request, data, media_type)
