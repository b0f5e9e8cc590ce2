"""The items of a Responses request, in the forms in which clients send their own and return ours. What is not supported is a 400."""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar
from uuid import uuid4

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contracts.responses import MAX_PARTS, Item, ItemPart
from contracts.text import Picture
from gateway.openai.errors import PLAIN_TYPES
from gateway.problems import HttpProblem
from gateway.strict_model import HttpModel
from gateway.text.uploads import decode_base64, image_media_type, store_upload

ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
PART_TYPES = ("input_text", "input_image", "output_text", "refusal")
ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}

Model = TypeVar("Model", bound=BaseModel)
Fields = dict[str, Any]


class StrictModel(HttpModel):
    """Unknown fields are refused, unless they are null or empty: clients return our items with all fields of their own models."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def refuse_unknown(self) -> "StrictModel":
        if named := next((name for name, value in (self.model_extra or {}).items() if value not in (None, [], {})), None):
            raise ValueError(f"{named} is not supported")
        return self


class TextPart(StrictModel):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=1000)
    logprobs: list[Any] | None = None


class RefusalPart(StrictModel):
    type: Literal["refusal"]
    refusal: str


class ImagePart(StrictModel):
    type: Literal["input_image"]
    image_url: str = Field(min_length=1, description="`data:image/…;base64,…` or `https://…`.")
    detail: Literal["auto", "low", "high", "original"] | None = "auto"


class StoredImagePart(StrictModel):
    type: Literal["input_image"]
    detail: Literal["auto", "low", "high", "original"] | None = "auto"


class MessageItem(StrictModel):
    type: Literal["message"] = "message"
    id: str | None = Field(None, max_length=255)
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Fields] = Field(max_length=1 << 20)
    status: str | None = None


class CallItem(StrictModel):
    type: Literal["function_call"]
    id: str | None = Field(None, max_length=255)
    call_id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=256)
    arguments: str
    status: str | None = None


class CallOutputItem(StrictModel):
    type: Literal["function_call_output"]
    id: str | None = Field(None, max_length=255)
    call_id: str = Field(min_length=1, max_length=256)
    output: str | list[Fields]
    status: str | None = None


class TextOfReasoning(StrictModel):
    type: Literal["summary_text", "reasoning_text"]
    text: str


class ReasoningItem(StrictModel):
    """`encrypted_content` is not supported: only its maker can read it."""

    type: Literal["reasoning"]
    id: str | None = Field(None, max_length=255)
    summary: list[TextOfReasoning] = Field(default_factory=list, max_length=1000)
    content: list[TextOfReasoning] | None = Field(None, max_length=1000)
    status: str | None = None


class ReferenceItem(StrictModel):
    type: Literal["item_reference"] = "item_reference"
    id: str = Field(min_length=1, max_length=255)


async def to_items(request: Request, given: str | Sequence[Fields]) -> list[Item]:
    """The items of an input. Pictures are stored. Raises HttpProblem(400, 413, 503), which names the field."""
    if isinstance(given, str):
        part = ItemPart(type="input_text", text=given)
        return [Item(type="message", id=new_id("message"), role="user", content=[part])]
    return [await to_item(request, f"input.{index}", fields) for index, fields in enumerate(given)]


async def to_item(request: Request, place: str, fields: Fields) -> Item:
    kind = fields.get("type") or ("message" if "role" in fields else "item_reference")
    match kind:
        case "message":
            message = parse(MessageItem, fields, place)
            content = await to_parts(request, f"{place}.content", message.content, message.role, message.id)
            return Item(type="message", id=message.id or new_id(kind), role=message.role, content=content)
        case "function_call":
            call = parse(CallItem, fields, place)
            return Item(type=kind, id=call.id or new_id(kind), call_id=call.call_id, name=call.name, arguments=call.arguments)
        case "function_call_output":
            result = parse(CallOutputItem, fields, place)
            output = result.output
            parts = output if isinstance(output, str) else await to_parts(request, f"{place}.output", output, "user", result.id)
            return Item(type=kind, id=result.id or new_id(kind), call_id=result.call_id, output=parts)
        case "reasoning":
            reasoning = parse(ReasoningItem, fields, place)
            summary, thoughts = ([part.text for part in parts or ()] for parts in (reasoning.summary, reasoning.content))
            return Item(type=kind, id=reasoning.id or new_id(kind), summary=summary, thoughts=thoughts)
        case "item_reference":
            return Item(type=kind, id=parse(ReferenceItem, fields, place).id)
        case _:
            raise unsupported(f"{place}.type", f"items of the type {str(kind)[:80]!r}", ITEM_TYPES)


async def to_parts(request: Request, place: str, content: str | list[Fields], role: str, item_id: str | None) -> list[ItemPart]:
    if isinstance(content, str):
        return [ItemPart(type="output_text" if role == "assistant" else "input_text", text=content)]
    if len(content) > MAX_PARTS:
        raise HttpProblem(400, "invalid-request", f"{place}: an item has at most {MAX_PARTS} parts", param=place)
    return [await to_part(request, f"{place}.{index}", fields, item_id) for index, fields in enumerate(content)]


async def to_part(request: Request, place: str, fields: Fields, item_id: str | None) -> ItemPart:
    """An image of a stored item comes back without its bytes, as it was listed: the worker finds it by the item's id."""
    kind = fields.get("type")
    match kind:
        case "input_text" | "output_text":
            return ItemPart(type=kind, text=parse(TextPart, fields, place).text)
        case "refusal":
            return ItemPart(type="refusal", text=parse(RefusalPart, fields, place).refusal)
        case "input_image":
            if item_id and fields.get("image_url") is None and fields.get("file_id") is None:
                return ItemPart(type=kind, detail=parse(StoredImagePart, fields, place).detail or "auto")
            image = parse(ImagePart, fields, place)
            return ItemPart(
                type=kind, picture=await to_picture(request, f"{place}.image_url", image.image_url), detail=image.detail or "auto"
            )
        case _:
            raise unsupported(f"{place}.type", f"parts of the type {str(kind)[:80]!r}", PART_TYPES)


async def to_picture(request: Request, place: str, url: str) -> Picture:
    """Raises HttpProblem(400, 413, 503)."""
    if url[:8].lower() == "https://":
        if len(url) > 2048:
            raise HttpProblem(400, "invalid-image-url", "an address has at most 2048 characters", param=place)
        return Picture(url=url)
    if url[:5].lower() != "data:":
        raise HttpProblem(400, "invalid-image-url", "an image_url is an https:// URL or a data: URL", param=place)
    data = await decode_base64(request, url)
    media_type = image_media_type(data)
    if media_type is None:
        raise HttpProblem(400, "image-unreadable", "the image is not PNG, JPEG, WebP, GIF or BMP", param=place)
    return Picture.model_validate(await store_upload(request, data, media_type))


def parse(model: type[Model], fields: Fields, place: str) -> Model:
    """Raises HttpProblem(400), which names the field."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        names = (str(part) for part in first["loc"] if part not in PLAIN_TYPES and "[" not in str(part))
        path = ".".join([place, *names])
        raise HttpProblem(400, "invalid-request", f"{path}: {first['msg'].removeprefix('Value error, ')}", param=path) from None


def unsupported(param: str, what: str, supported: Sequence[str]) -> HttpProblem:
    return HttpProblem(400, "unsupported-parameter", f"{what} are not supported: send {', '.join(supported)}", param=param)


def new_id(kind: str) -> str:
    return f"{ID_PREFIXES[kind]}_{uuid4().hex}"
