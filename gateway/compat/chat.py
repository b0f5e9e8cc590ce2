"""The CloudLLM API's `/generate`, `/vision` and `/multimodal`: a turn of a conversation, with an image, a document, or both."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict

from contracts.text import ModelInfo, TextDelta, TextDone
from gateway.compat.chat_requests import GenerateTurn, MultimodalTurn, Turn, VisionTurn, missing_field, parse_turn, turn_request_body
from gateway.compat.legacy_route import LegacyRoute
from gateway.json_body import run_parser
from gateway.problems import REQUEST_ERRORS, HttpProblem
from gateway.sse import json_event, sse_response
from gateway.strict_model import HttpModel
from gateway.text.client import VISION_UNSUPPORTED, generate_text, lacks_vision, stream_text, to_legacy_problem
from gateway.text.uploads import DOCUMENT_MEDIA_TYPES, UNSUPPORTED_FILE_TYPE, decode_base64, document_type, image_media_type, store_upload

router = APIRouter(tags=["writing"], route_class=LegacyRoute)

UPLOAD_PATHS = frozenset({"/vision", "/multimodal"})
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {400: {}, 413: {}, 422: {}, 500: {}, 501: {}, 503: {}}
GENERATE_FAILED, VISION_FAILED, MULTIMODAL_FAILED = "생성 오류", "이미지 분석 오류", "멀티모달 분석 오류"


class Generation(HttpModel):
    """The response to a turn."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"response": "라멘을 추천합니다.", "conversation_id": "7e0c7a5c"}]})

    response: str
    conversation_id: str
    generation_time: float
    model_info: ModelInfo
    response_json: dict[str, Any] | None = None
    response_is_json: bool = False


@router.post("/generate", response_model=Generation, responses=ERROR_RESPONSES)
async def generate(request: Request, turn: GenerateTurn) -> Response:
    """Generate text; with `stream`, as server-sent events."""
    return await answer_turn(request, turn, {}, GENERATE_FAILED)


@router.post("/vision", response_model=Generation, responses=ERROR_RESPONSES, openapi_extra=turn_request_body(VisionTurn, "image"))
async def vision(request: Request) -> Response:
    """Generate text about an image: JSON with `image_data`, or a form with a file `image`."""
    turn, files = await parse_turn(request, VisionTurn)
    image = await store_image(request, turn, files)
    if image is None:
        raise missing_field("image_data")
    info = {"multimodal": True, "engine": "vLLM+Vision"}
    return await answer_turn(request, turn, {"pictures": [image]}, VISION_FAILED, info)


@router.post(
    "/multimodal", response_model=Generation, responses=ERROR_RESPONSES, openapi_extra=turn_request_body(MultimodalTurn, "image", "file")
)
async def multimodal(request: Request) -> Response:
    """Generate text about an image, a document (PDF, DOCX, TXT), or both: JSON with base64, or a form with files."""
    turn, files = await parse_turn(request, MultimodalTurn)
    image, (document, file_type) = await store_image(request, turn, files), await store_document(request, turn, files)
    attachments: dict[str, Any] = ({"pictures": [image]} if image else {}) | ({"documents": [document]} if document else {})
    info = {"has_image": bool(image), "has_file": bool(document), "file_type": file_type, "multimodal": True, "engine": "vLLM+Multimodal"}
    return await answer_turn(request, turn, attachments, MULTIMODAL_FAILED, info)


async def store_image(request: Request, turn: VisionTurn, files: dict[str, bytes]) -> dict[str, Any] | None:
    """The claim on the turn's image; None without one. Raises HttpProblem(400, 413, 501, 503)."""
    data = files.get("image") or files.get("image_data") or (await decode_base64(request, turn.image_data) if turn.image_data else None)
    if data is None:
        return None
    media_type = image_media_type(data)
    if media_type is None:
        raise HttpProblem(400, "image-unreadable", UNSUPPORTED_FILE_TYPE)
    if await lacks_vision(request):
        raise HttpProblem(501, "vision-unsupported", VISION_UNSUPPORTED)
    return await store_upload(request, data, media_type)


async def store_document(request: Request, turn: MultimodalTurn, files: dict[str, bytes]) -> tuple[dict[str, Any] | None, str | None]:
    """The claim on the turn's document, and the document's type; None, None without one. Raises HttpProblem(400, 413, 503)."""
    data = files.get("file") or files.get("file_data") or (await decode_base64(request, turn.file_data) if turn.file_data else None)
    if data is None:
        return None, None
    file_type = await run_parser(document_type, data, size=len(data))
    if file_type is None:
        raise HttpProblem(400, "document-unsupported", UNSUPPORTED_FILE_TYPE)
    return await store_upload(request, data, DOCUMENT_MEDIA_TYPES[file_type]), file_type


async def answer_turn(
    request: Request, turn: Turn, attachments: dict[str, Any], action: str, extra_info: dict[str, Any] | None = None
) -> Response:
    command = turn.command() | attachments
    if turn.stream:
        return await sse_response(request, turn_events(request, command, action, extra_info or {}), error_event)
    try:
        return JSONResponse(generation_body(await generate_text(request, command), extra_info or {}))
    except REQUEST_ERRORS as error:
        raise to_legacy_problem(error, action) from error


async def turn_events(request: Request, command: dict[str, Any], action: str, extra_info: dict[str, Any]) -> AsyncGenerator[str]:
    """The events `delta` and `done`. A failure before the first one is raised as HttpProblem, a later one is the event `error`."""
    started = False
    async with aclosing(stream_text(request, command)) as chunks:
        try:
            async for chunk in chunks:
                yield turn_event(chunk, extra_info)
                started = True
        except REQUEST_ERRORS as error:
            problem = to_legacy_problem(error, action)
            if not started:
                raise problem from error
            yield error_event(problem)


def error_event(problem: HttpProblem) -> str:
    return json_event("error", {"detail": problem.detail, "status": problem.status})


def turn_event(chunk: TextDelta | TextDone, extra_info: dict[str, Any]) -> str:
    """Empty for a delta without text, such as one of the model's reasoning."""
    if isinstance(chunk, TextDelta):
        return json_event("delta", {"delta": chunk.delta}) if chunk.delta else ""
    return json_event("done", generation_body(chunk, extra_info))


def generation_body(done: TextDone, extra_info: dict[str, Any]) -> dict[str, Any]:
    """The six fields of the source system. A conversation that is not stored has an empty id. An answer that a filter cut says so."""
    filtered = {"finish_reason": done.finish_reason} if done.finish_reason == "content_filter" else {}
    info = done.model_info.model_dump(mode="json", exclude_none=True) | filtered | extra_info
    return {
        "response": done.response,
        "conversation_id": done.conversation_id or "",
        "generation_time": done.generation_time,
        "model_info": info,
        "response_json": done.response_json,
        "response_is_json": done.response_is_json,
    }
