"""`POST /v1/chat/completions` as OpenAI has it: a command to the writing actor, whose answer comes whole or as it is written."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from bus.errors import PublishError
from bus.request_reply import ReplyFault, ReplyTimeout
from contracts.text import TextDone, Usage
from gateway.openai_errors import ERRORS, OpenAIRoute, form, said
from gateway.openai_models import adapter_of
from gateway.openai_requests import ChatRequest
from gateway.problems import Refused
from gateway.server_sent import send_stream
from gateway.writing import FAILURES, RETRY, Failure, streamed, written

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

END = "data: [DONE]\n\n"


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: Said
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


@router.post("/chat/completions", response_model=ChatCompletion, responses=ERRORS)
async def chat(request: Request, body: ChatRequest) -> Response:
    """Write. With `stream` as server-sent events. Who leaves before the end stops the writing."""
    lora = await adapter_of(request, body.model)
    command = await body.command(request, lora)
    if body.stream:
        return await send_stream(request, chunks(request, command, body))
    try:
        done = await written(request, command)
    except FAILURES as error:
        raise refusal(error) from error
    choice = Choice(message=Said(content=done.response), finish_reason=done.finish_reason)
    whole = ChatCompletion(
        id=name(), created=int(time.time()), model=lora or done.model_info.model_name, choices=[choice], usage=done.usage
    )
    return JSONResponse(whole.model_dump(mode="json"))


def name() -> str:
    return f"chatcmpl-{uuid4().hex}"


def refusal(error: Failure) -> Refused:
    """A model that is silent past the deadline is away: come back later."""
    match error:
        case ReplyFault():
            return said(error)
        case ReplyTimeout() | PublishError():
            return Refused(503, "model-away", str(error), RETRY)


async def chunks(request: Request, command: dict[str, Any], body: ChatRequest) -> AsyncGenerator[str]:
    """What fails before the first word is raised; after it, it is said in the stream, which then ends without its mark."""
    begun = False
    frame = {"id": name(), "object": "chat.completion.chunk", "created": int(time.time()), "model": body.model}
    async with aclosing(streamed(request, command)) as pieces:
        try:
            async for piece in pieces:
                if not begun:
                    yield chunk(frame, {"role": "assistant", "content": ""})
                    begun = True
                if isinstance(piece, TextDone):
                    yield closing(frame, piece, body.tells_usage)
                else:
                    yield chunk(frame, {"content": piece})
        except FAILURES as error:
            if not begun:
                raise refusal(error) from error
            yield data(form(refusal(error)))


def chunk(frame: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> str:
    return data(frame | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})


def closing(frame: dict[str, Any], done: TextDone, tells_usage: bool) -> str:
    usage = data(frame | {"choices": [], "usage": done.usage.model_dump(mode="json")}) if tells_usage else ""
    return chunk(frame, {}, done.finish_reason) + usage + END


def data(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
