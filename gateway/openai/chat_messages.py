"""The messages of OpenAI's chat request, in the forms in which clients keep their histories, and the messages of the command.

A conversation that called functions elsewhere is continued as text: what was called, and what it returned.
"""

from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.problems import HttpProblem
from gateway.text.uploads import decode_base64, image_media_type, store_upload

ROLES = {"developer": "system", "tool": "user", "function": "user"}
TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
IMAGE_TYPES = frozenset({"image_url", "input_image"})
REASONING_TYPES = frozenset({"thinking", "reasoning", "redacted_thinking"})
MAX_CALLS = 128


class LenientModel(BaseModel):
    model_config = ConfigDict(extra="ignore")


class ImageUrl(LenientModel):
    url: str = Field(min_length=1, description="`data:image/…;base64,…` or `https://…`.")


class ContentPart(LenientModel):
    """A text, an image, or what an assistant wrote in another form: a refusal is a text, its reasoning is left out."""

    type: Literal["text", "input_text", "output_text", "refusal", "image_url", "input_image", "thinking", "reasoning", "redacted_thinking"]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None

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


class FunctionCall(LenientModel):
    name: str = Field("", max_length=256)
    arguments: str | None = None


class ToolCall(LenientModel):
    id: str | None = None
    function: FunctionCall | None = None


class ChatMessage(LenientModel):
    """`content` may be null or absent in a message of the assistant, as clients keep a refusal, a function call or an empty answer."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_CALLS)
    function_call: FunctionCall | None = None
    tool_call_id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256)

    @property
    def parts(self) -> list[ContentPart]:
        return self.content if isinstance(self.content, list) else []

    @property
    def calls(self) -> list[str]:
        """The functions that it calls, as text."""
        calls = [call.function for call in self.tool_calls or () if call.function]
        calls += [self.function_call] if self.function_call else []
        return [f"[calls {call.name}({call.arguments or ''})]" for call in calls]

    @property
    def texts(self) -> list[str]:
        content = [self.content] if isinstance(self.content, str) else [part.words or "" for part in self.parts]
        return [*content, self.refusal or "", *self.calls]


async def to_message_fields(request: Request, index: int, message: ChatMessage) -> dict[str, Any]:
    """A message of the command. Raises HttpProblem(400, 413, 503)."""
    role = ROLES.get(message.role, message.role)
    prefix = f"[result of {message.name or message.tool_call_id or 'a call'}] " if message.role in {"tool", "function"} else ""
    if message.content is None and message.role != "assistant":
        raise HttpProblem(
            400, "invalid-request", f"a message of the role {message.role} needs a content", param=f"messages.{index}.content"
        )
    if not isinstance(message.content, list):
        text = message.content if message.content is not None else message.refusal or ""
        return {"role": role, "content": "\n".join(filter(None, [f"{prefix}{text}", *message.calls]))}
    parts = [
        await to_part_fields(request, f"messages.{index}.content.{position}", part)
        for position, part in enumerate(message.content)
        if part.type not in REASONING_TYPES
    ]
    parts = [*([{"text": prefix}] if prefix else []), *parts, *({"text": call} for call in message.calls)]
    return {"role": role, "content": parts or ""}


async def to_part_fields(request: Request, location: str, part: ContentPart) -> dict[str, Any]:
    """`location`: of the part in the request, for errors. Raises HttpProblem(400, 413, 503)."""
    if part.words is not None:
        return {"text": part.words}
    if part.image_url is None:
        field = "image_url" if part.is_image else "refusal" if part.type == "refusal" else "text"
        raise HttpProblem(400, "invalid-request", f"a part of the type {part.type} needs the field {field}", param=f"{location}.{field}")
    url = part.image_url.url
    if url[:8].lower() == "https://":
        return {"picture": {"url": url}}
    if url[:5].lower() != "data:":
        raise HttpProblem(400, "invalid-image-url", "an image_url is an https:// URL or a data: URL", param=f"{location}.image_url.url")
    data = await decode_base64(request, url)
    media_type = image_media_type(data)
    if media_type is None:
        raise HttpProblem(400, "image-unreadable", "the image is not PNG, JPEG, WebP, GIF or BMP", param=f"{location}.image_url.url")
    return {"picture": await store_upload(request, data, media_type)}
