"""Document 003's `/generate`, `/vision` and `/multimodal`: a turn in a conversation, with a picture, with a document, or both."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from contracts.text import ModelInfo, TextDone
from gateway.compat.chat_requests import GenerateTurn, MultimodalTurn, Turn, VisionTurn, missing_field, parse_turn, turn_request_body
from gateway.compat.legacy_route import LegacyRoute
from gateway.problems import ERROR_FORMATS, HttpProblem
from gateway.sse import json_event, sse_response
from gateway.text.client import REQUEST_ERRORS, VISION_UNAVAILABLE, generate_text, stream_text, to_legacy_problem
from gateway.text.uploads import DOCUMENT_MEDIA_TYPES, UNSUPPORTED_FILE_TYPE, decode_base64, document_type, image_media_type, store_upload

router = APIRouter(tags=["writing"], route_class=LegacyRoute)


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {400: {}, 413: {}, 422: {}, 500: {}, 503: {}}


GENERATE_FAILED, VISION_FAILED, MULTIMODAL_FAILED = "생성 오류", "이미지 분석 오류", "멀티모달 분석 오류"


for path in ("/generate", "/vision", "/multimodal"):
    ERROR_FORMATS[path] = lambda refused: {"detail": refused.detail}


class Generation(BaseModel):
    """The answer to a turn."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"response": "라멘을 추천합니다.", "conversation_id": "7e0c7a5c"}]})

    response: str
    conversation_id: str
    generation_time: float
    model_info: ModelInfo
    response_json: dict[str, Any] | None = None
    response_is_json: bool = False


@router.post("/generate", response_model=Generation, responses=ERROR_RESPONSES)
async def generate(request: Request, turn: GenerateTurn) -> Response:
    """Write. With `stream` as server-sent events."""
    return await answer_turn(request, turn, {}, GENERATE_FAILED)


@router.post("/vision", response_model=Generation, responses=ERROR_RESPONSES, openapi_extra=turn_request_body(VisionTurn, "image"))
async def vision(request: Request) -> Response:
    """Write about a picture: JSON with `image_data`, or a form with a file `image`."""
    turn, files = await parse_turn(request, VisionTurn)
    picture = await store_image(request, turn, files)
    if picture is None:
        raise missing_field("image_data")
    more = {"multimodal": True, "engine": "vLLM+Vision"}
    return await answer_turn(request, turn, {"pictures": [picture]}, VISION_FAILED, more)


@router.post(
    "/multimodal", response_model=Generation, responses=ERROR_RESPONSES, openapi_extra=turn_request_body(MultimodalTurn, "image", "file")
)
async def multimodal(request: Request) -> Response:
    """Write about a picture, a document (PDF, DOCX, TXT), or both: JSON with base64, or a form with files."""
    turn, files = await parse_turn(request, MultimodalTurn)
    picture, (document, kind) = await store_image(request, turn, files), await store_document(request, turn, files)
    shown: dict[str, Any] = ({"pictures": [picture]} if picture else {}) | ({"documents": [document]} if document else {})
    more = {"has_image": bool(picture), "has_file": bool(document), "file_type": kind, "multimodal": True, "engine": "vLLM+Multimodal"}
    return await answer_turn(request, turn, shown, MULTIMODAL_FAILED, more)


async def store_image(request: Request, turn: VisionTurn, files: dict[str, bytes]) -> dict[str, Any] | None:
    data = files.get("image") or files.get("image_data") or (await decode_base64(request, turn.image_data) if turn.image_data else None)
    if data is None:
        return None
    media_type = image_media_type(data)
    if media_type is None:
        raise HttpProblem(400, "image-unreadable", UNSUPPORTED_FILE_TYPE)
    return await store_upload(request, data, media_type)


async def store_document(request: Request, turn: MultimodalTurn, files: dict[str, bytes]) -> tuple[dict[str, Any] | None, str | None]:
    """The claim, and what the file is."""
    data = files.get("file") or files.get("file_data") or (await decode_base64(request, turn.file_data) if turn.file_data else None)
    if data is None:
        return None, None
    kind = document_type(data)
    if kind is None:
        raise HttpProblem(400, "document-unsupported", UNSUPPORTED_FILE_TYPE)
    return await store_upload(request, data, DOCUMENT_MEDIA_TYPES[kind]), kind


async def answer_turn(
    request: Request, turn: Turn, attachments: dict[str, Any], action: str, extra_info: dict[str, Any] | None = None
) -> Response:
    command = turn.command() | attachments
    if "pictures" in attachments:
        await require_vision_model(request)
    if turn.stream:
        return await sse_response(request, turn_events(request, command, action, extra_info or {}))
    try:
        return JSONResponse(generation_body(await generate_text(request, command), extra_info or {}))
    except REQUEST_ERRORS as error:
        raise to_legacy_problem(error, action) from error


async def require_vision_model(request: Request) -> None:
    """Raises Refused(503) when the model is known to see nothing."""
    status = (await request.app.state.text_status.latest()).status
    if status and status.vision is False:
        raise HttpProblem(503, "model-blind", VISION_UNAVAILABLE)


async def turn_events(request: Request, command: dict[str, Any], action: str, extra_info: dict[str, Any]) -> AsyncGenerator[str]:
    """What fails before the first word is raised; after it, it is an event."""
    begun = False
    async with aclosing(stream_text(request, command)) as pieces:
        try:
            async for piece in pieces:
                yield (
                    json_event("done", generation_body(piece, extra_info))
                    if isinstance(piece, TextDone)
                    else json_event("delta", {"delta": piece})
                )
                begun = True
        except REQUEST_ERRORS as error:
            refused = to_legacy_problem(error, action)
            if not begun:
                raise refused from error
            yield json_event("error", {"detail": refused.detail, "status": refused.status})


def generation_body(done: TextDone, extra_info: dict[str, Any]) -> dict[str, Any]:
    """The source system's six fields; the conversation that nobody keeps has no name."""
    info = done.model_info.model_dump(mode="json", exclude_none=True) | extra_info
    return {
        "response": done.response,
        "conversation_id": done.conversation_id or "",
        "generation_time": done.generation_time,
        "model_info": info,
        "response_json": done.response_json,
        "response_is_json": done.response_is_json,
    }
