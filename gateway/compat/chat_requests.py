"""The request bodies of the CloudLLM API: JSON as in the source system, or a form with files."""

from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from bus.json_text import storable_text
from gateway.json_body import run_parser, validate_body
from gateway.middleware.origins import FORM_MEDIA_TYPES, media_type_of
from gateway.problems import HttpProblem
from gateway.strict_model import HttpModel
from gateway.text.uploads import check_upload_size

MAX_FORM_FIELDS, MAX_FORM_ESCAPES = 32, 1_000_000


class Turn(HttpModel):
    """A user's turn in a conversation."""

    model_config = ConfigDict(extra="ignore")

    message: str = Field(min_length=1, max_length=400_000)
    conversation_id: str | None = Field(None, max_length=255, description="None or an unknown id: a new conversation.")
    max_tokens: int | None = Field(512, description="1 to MAX_TOKENS_CAP; other values are clamped.")
    lora_adapter: str | None = Field(None, max_length=255)
    json_only: bool = Field(False, description="The response is a JSON object.")
    stream: bool = Field(False, description="Server-sent events: `delta` for each piece of text, then `done` with the whole response.")

    def command(self) -> dict[str, Any]:
        """The fields of the text step's command."""
        fields = self.model_dump(include={"message", "conversation_id", "lora_adapter", "json_only", "temperature"}, exclude_none=True)
        return fields | ({} if self.max_tokens is None else {"max_tokens": max(1, self.max_tokens)})


class GenerateTurn(Turn):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"message": "메뉴를 추천해 주세요", "conversation_id": None, "max_tokens": 64, "temperature": 0.7}]}
    )

    temperature: float | None = Field(0.7, ge=0, le=2)


class VisionTurn(Turn):
    model_config = ConfigDict(json_schema_extra={"examples": [{"message": "무엇이 보이나요?", "image_data": "data:image/png;base64,…"}]})

    image_data: str | None = Field(None, description="base64 or a data URL; in a form, a file `image`.")


class MultimodalTurn(VisionTurn):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"message": "요약해 주세요", "file_data": "5rCU6rWtIOq4gA==", "file_type": "txt"}]}
    )

    file_data: str | None = Field(None, description="base64; in a form, a file `file`. PDF, DOCX or TXT, identified by its content.")
    file_type: str | None = Field(None, max_length=32, description="Ignored: the content decides.")


T = TypeVar("T", bound=Turn)


def turn_request_body(model: type[Turn], *files: str) -> dict[str, Any]:
    """OpenAPI's `requestBody` for a body that is JSON or a form."""
    schema = model.model_json_schema()
    file_fields = {name: {"type": "string", "format": "binary"} for name in files}
    form = {"type": "object", "properties": schema["properties"] | file_fields, "required": ["message"]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}}}


async def parse_turn(request: Request, model: type[T]) -> tuple[T, dict[str, bytes]]:
    """The turn and the files by field. Raises RequestValidationError, HttpProblem(413)."""
    try:
        if media_type_of(request.headers.get("content-type", "")) in FORM_MEDIA_TYPES:
            fields, files = await read_form(request)
            return model.model_validate(fields), files
        return await validate_body(request, model), {}
    except ValidationError as error:
        entries = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([entry | {"loc": ("body", *entry["loc"])} for entry in entries]) from error


async def read_form(request: Request) -> tuple[dict[str, str], dict[str, bytes]]:
    """The fields and files of a form, without empty ones. Raises HttpProblem(413)."""
    fields, files = {}, {}
    if media_type_of(request.headers.get("content-type", "")) == "application/x-www-form-urlencoded":
        return await read_urlencoded(request), {}
    async with request.form(max_files=2, max_fields=MAX_FORM_FIELDS) as form:
        for name, value in form.items():
            if isinstance(value, UploadFile):
                check_upload_size(request, value.size or 0)
                files[name] = await value.read()
            elif value:
                fields[name] = storable_text(value)
    return fields, {name: data for name, data in files.items() if data}


async def read_urlencoded(request: Request) -> dict[str, str]:
    """The fields that are not blank. Raises HttpProblem(413, 422)."""
    body = await request.body()
    if body.count(b"&") >= MAX_FORM_FIELDS or body.count(b"%") > MAX_FORM_ESCAPES:
        raise HttpProblem(413, "form-too-large", f"the form has more than {MAX_FORM_FIELDS} fields or {MAX_FORM_ESCAPES} escapes")
    try:
        fields = await run_parser(parse_qsl, body.decode("utf-8-sig"), size=len(body))
        return {name: storable_text(value) for name, value in fields}
    except UnicodeDecodeError:
        raise HttpProblem(422, "form-unreadable", "the form is not UTF-8") from None


def missing_field(field: str) -> RequestValidationError:
    return RequestValidationError([{"type": "missing", "loc": ("body", field), "msg": "Field required", "input": None}])
