"""OpenAI's `POST /v1/images/edits`: a form with a picture, and a mask whose transparent pixels are drawn anew."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from bus.json_text import storable_text
from gateway.middleware.origins import media_type_of
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute
from gateway.openai.image_requests import EditRequest
from gateway.openai.images import Pictures, draw
from gateway.problems import HttpProblem
from gateway.services import services_of
from gateway.text.uploads import image_media_type, store_upload

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

FORM_PATHS = frozenset({"/v1/images/edits"})
FILES = ("image", "mask")
MAX_FORM_FILES, MAX_FORM_FIELDS = 17, 64
"""OpenAI takes sixteen pictures and a mask: one that sends them learns which are not supported."""


def form_schema() -> dict[str, Any]:
    """OpenAPI's `requestBody` of the form."""
    schema = EditRequest.model_json_schema()
    del schema["$defs"]
    files = {name: {"type": "string", "format": "binary"} for name in FILES}
    loras = {"type": "string", "description": "JSON: a list of objects with `name` or `uri`, and `scale`."}
    form = schema | {"properties": schema["properties"] | files | {"loras": loras}, "required": ["image", "prompt"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


@router.post(
    "/images/edits",
    response_model=Pictures,
    response_model_exclude_none=True,
    responses=ERROR_RESPONSES,
    openapi_extra=form_schema(),
)
async def edit(request: Request) -> Pictures | StreamingResponse:
    """Edit a picture; with `stream`, as server-sent events. A disconnect cancels the work."""
    services = services_of(request)
    body, files = await read_edit_form(request)
    services.require_store()
    body.check(services.file_memory.share_bytes)
    media_types = {name: require_picture(name, data) for name, data in files.items()}
    claims = {name: (await store_upload(request, data, media_types[name]))["claim"] for name, data in files.items()}
    strength = {} if body.strength is None else {"strength": body.strength}
    return await draw(request, body, {"edit": claims | strength}, "image_edit")


async def read_edit_form(request: Request) -> tuple[EditRequest, dict[str, bytes]]:
    """The request and its files by name. Raises HttpProblem(400, 413, 415), RequestValidationError, HTTPException(400)."""
    if media_type_of(request.headers.get("content-type", "")) != "multipart/form-data":
        detail = "An edit is a form with a file: send it with the header `Content-Type: multipart/form-data`."
        raise HttpProblem(415, "media-type-unsupported", detail)
    async with request.form(max_files=MAX_FORM_FILES, max_fields=MAX_FORM_FIELDS) as form:
        fields = read_fields(form)
        files = await read_files(form, services_of(request).settings.max_upload_bytes)
    try:
        return EditRequest.model_validate(fields), files
    except ValidationError as error:
        entries = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([entry | {"loc": ("body", *entry["loc"])} for entry in entries]) from error


def read_fields(form: FormData) -> dict[str, str]:
    """The texts of a form, without empty ones. Raises HttpProblem(400)."""
    fields: dict[str, str] = {}
    for name, text in form.multi_items():
        if isinstance(text, UploadFile) or not text:
            continue
        if "[" in name:
            plain = name.partition("[")[0]
            raise HttpProblem(400, "invalid-request", f"{name}: a form has no lists: send {plain} as one field of JSON", param=plain)
        if name in FILES:
            raise HttpProblem(400, "invalid-request", f"{name} is a text: send it as a file", param=name)
        if name in fields:
            raise HttpProblem(400, "invalid-request", f"{name} is given twice", param=name)
        fields[name] = storable_text(text)
    return fields


async def read_files(form: FormData, limit: int) -> dict[str, bytes]:
    """The picture and the mask. OpenAI's clients name the only picture `image` or `image[]`. Raises HttpProblem(400, 413)."""
    files: dict[str, bytes] = {}
    for field, file in form.multi_items():
        if not isinstance(file, UploadFile):
            continue
        name = field.removesuffix("[]")
        if name not in FILES:
            raise HttpProblem(400, "invalid-request", f"a file {field!r} is not supported: the files are image and mask", param=name)
        if name in files:
            raise HttpProblem(400, "invalid-request", f"several files are {name}: an edit is of one picture", param=name)
        if (file.size or 0) > limit:
            detail = f"{name} has {file.size} bytes, more than MAX_UPLOAD_BYTES, {limit}"
            raise HttpProblem(413, "file-too-large", detail, param=name)
        files[name] = await file.read()
    if "image" not in files:
        raise HttpProblem(400, "invalid-request", "the form has no file image, the picture to edit", param="image")
    return files


def require_picture(name: str, data: bytes) -> str:
    """The media type of a file. Raises HttpProblem(400)."""
    media_type = image_media_type(data)
    if media_type is None:
        raise HttpProblem(400, "image-unreadable", f"{name} is no PNG, JPEG, WebP, GIF or BMP", param=name)
    return media_type
