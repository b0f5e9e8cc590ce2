"""Document 003's `/generate`, `/vision` and `/multimodal`: a turn in a conversation, with a picture, with a document, or both."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from contracts.text import ModelInfo, TextDone
from gateway.problems import FORMS, Refused
from gateway.server_sent import send_stream
from gateway.source_route import SourceRoute
from gateway.turns import GenerateTurn, MultimodalTurn, Turn, VisionTurn, asked, bodies, missing
from gateway.uploads import DOCUMENTS, UNSUPPORTED, decoded, document_kind, kept, picture_type
from gateway.writing import FAILURES, NO_PICTURES, refusal, streamed, written

router = APIRouter(tags=["writing"], route_class=SourceRoute)

ERRORS: dict[int | str, dict[str, Any]] = {400: {}, 413: {}, 422: {}, 500: {}, 503: {}}
GENERATING, SEEING, READING = "생성 오류", "이미지 분석 오류", "멀티모달 분석 오류"
for path in ("/generate", "/vision", "/multimodal"):
    FORMS[path] = lambda refused: {"detail": refused.detail}


class Generation(BaseModel):
    """The answer to a turn."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"response": "라멘을 추천합니다.", "conversation_id": "7e0c7a5c"}]})

    response: str
    conversation_id: str
    generation_time: float
    model_info: ModelInfo
    response_json: dict[str, Any] | None = None
    response_is_json: bool = False


@router.post("/generate", response_model=Generation, responses=ERRORS)
async def generate(request: Request, turn: GenerateTurn) -> Response:
    """Write. With `stream` as server-sent events."""
    return await answer(request, turn, {}, GENERATING)


@router.post("/vision", response_model=Generation, responses=ERRORS, openapi_extra=bodies(VisionTurn, "image"))
async def vision(request: Request) -> Response:
    """Write about a picture: JSON with `image_data`, or a form with a file `image`."""
    turn, files = await asked(request, VisionTurn)
    picture = await picture_of(request, turn, files)
    if picture is None:
        raise missing("image_data")
    more = {"multimodal": True, "engine": "vLLM+Vision"}
    return await answer(request, turn, {"pictures": [picture]}, SEEING, more)


@router.post("/multimodal", response_model=Generation, responses=ERRORS, openapi_extra=bodies(MultimodalTurn, "image", "file"))
async def multimodal(request: Request) -> Response:
    """Write about a picture, a document (PDF, DOCX, TXT), or both: JSON with base64, or a form with files."""
    turn, files = await asked(request, MultimodalTurn)
    picture, (document, kind) = await picture_of(request, turn, files), await document_of(request, turn, files)
    shown: dict[str, Any] = ({"pictures": [picture]} if picture else {}) | ({"documents": [document]} if document else {})
    more = {"has_image": bool(picture), "has_file": bool(document), "file_type": kind, "multimodal": True, "engine": "vLLM+Multimodal"}
    return await answer(request, turn, shown, READING, more)


async def picture_of(request: Request, turn: VisionTurn, files: dict[str, bytes]) -> dict[str, Any] | None:
    data = files.get("image") or files.get("image_data") or (await decoded(request, turn.image_data) if turn.image_data else None)
    if data is None:
        return None
    media_type = picture_type(data)
    if media_type is None:
        raise Refused(400, "image-unreadable", UNSUPPORTED)
    return await kept(request, data, media_type)


async def document_of(request: Request, turn: MultimodalTurn, files: dict[str, bytes]) -> tuple[dict[str, Any] | None, str | None]:
    """The claim, and what the file is."""
    data = files.get("file") or files.get("file_data") or (await decoded(request, turn.file_data) if turn.file_data else None)
    if data is None:
        return None, None
    kind = document_kind(data)
    if kind is None:
        raise Refused(400, "document-unsupported", UNSUPPORTED)
    return await kept(request, data, DOCUMENTS[kind]), kind


async def answer(request: Request, turn: Turn, shown: dict[str, Any], doing: str, more: dict[str, Any] | None = None) -> Response:
    command = turn.command() | shown
    if "pictures" in shown:
        await refuse_the_blind(request)
    if turn.stream:
        return await send_stream(request, events(request, command, doing, more or {}))
    try:
        return JSONResponse(told(await written(request, command), more or {}))
    except FAILURES as error:
        raise refusal(error, doing) from error


async def refuse_the_blind(request: Request) -> None:
    """Raises Refused(503) when the model is known to see nothing."""
    status = (await request.app.state.text_statuses.latest()).status
    if status and status.vision is False:
        raise Refused(503, "model-blind", NO_PICTURES)


async def events(request: Request, command: dict[str, Any], doing: str, more: dict[str, Any]) -> AsyncGenerator[str]:
    """What fails before the first word is raised; after it, it is an event."""
    begun = False
    async with aclosing(streamed(request, command)) as pieces:
        try:
            async for piece in pieces:
                yield event("done", told(piece, more)) if isinstance(piece, TextDone) else event("delta", {"delta": piece})
                begun = True
        except FAILURES as error:
            refused = refusal(error, doing)
            if not begun:
                raise refused from error
            yield event("error", {"detail": refused.detail, "status": refused.status})


def event(name: str, body: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"


def told(done: TextDone, more: dict[str, Any]) -> dict[str, Any]:
    """The source system's six fields; the conversation that nobody keeps has no name."""
    info = done.model_info.model_dump(mode="json", exclude_none=True) | more
    return {
        "response": done.response,
        "conversation_id": done.conversation_id or "",
        "generation_time": done.generation_time,
        "model_info": info,
        "response_json": done.response_json,
        "response_is_json": done.response_is_json,
    }
