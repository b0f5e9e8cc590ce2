"""OpenAI's `POST /v1/chat/completions`: a command to the text worker, whose result is returned whole or streamed."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError
from contracts.text import FinishReason, TextDone, Usage
from gateway.openai.chat_requests import ChatRequest
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute, openai_error, to_openai_problem
from gateway.openai.models import lora_adapter_of
from gateway.problems import REQUEST_ERRORS, RETRY_AFTER, HttpProblem, RequestError
from gateway.services import services_of
from gateway.sse import json_data, sse_response
from gateway.text.client import generate_text, stream_text

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

UPLOAD_PATHS = frozenset({"/v1/chat/completions"})
DONE_EVENT = "data: [DONE]\n\n"


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    left_out: list[str] | None = Field(None, description="Parameters of the request that the model's server does not take; absent: none.")


@router.post("/chat/completions", response_model=ChatCompletion, responses=ERROR_RESPONSES)
async def chat(request: Request, body: ChatRequest) -> Response:
    """Generate text; with `stream`, as server-sent events. A disconnect cancels the generation."""
    body.check_text_length(services_of(request).settings.max_body_bytes)
    lora = await lora_adapter_of(request, body.model)
    command = await body.command(request, lora)
    if body.stream:
        return await sse_response(request, stream_chunks(request, command, body), error_event)
    try:
        done = await generate_text(request, command)
    except REQUEST_ERRORS as error:
        raise to_chat_problem(error) from error
    choice = Choice(message=AssistantMessage(content=done.response), finish_reason=done.finish_reason)
    completion = ChatCompletion(
        id=completion_id(),
        created=int(time.time()),
        model=lora or done.model_info.model_name,
        choices=[choice],
        usage=done.usage,
        left_out=done.model_info.left_out,
    )
    return JSONResponse(completion.model_dump(mode="json", exclude={"left_out"} if completion.left_out is None else None))


def completion_id() -> str:
    return f"chatcmpl-{uuid4().hex}"


def to_chat_problem(error: RequestError) -> HttpProblem:
    """A timeout is a 503, so that clients retry."""
    match error:
        case ReplyFault():
            return to_openai_problem(error)
        case ReplyTimeout() | PublishError():
            return HttpProblem(503, "model-away", str(error), RETRY_AFTER)


async def stream_chunks(request: Request, command: dict[str, Any], body: ChatRequest) -> AsyncGenerator[str]:
    """A failure before the first delta is raised as HttpProblem; a later one is sent as an event, and the stream ends without [DONE]."""
    started = False
    frame = {"id": completion_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": body.model}
    async with aclosing(stream_text(request, command)) as chunks:
        try:
            async for chunk in chunks:
                if not started:
                    yield chunk_event(frame, {"role": "assistant", "content": ""})
                    started = True
                if isinstance(chunk, TextDone):
                    yield final_events(frame, chunk, body.include_usage)
                else:
                    yield chunk_event(frame, {"content": chunk})
        except REQUEST_ERRORS as error:
            if not started:
                raise to_chat_problem(error) from error
            yield error_event(to_chat_problem(error))


def error_event(problem: HttpProblem) -> str:
    return json_data(openai_error(problem))


def chunk_event(frame: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> str:
    return json_data(frame | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})


def final_events(frame: dict[str, Any], done: TextDone, include_usage: bool) -> str:
    usage = json_data(frame | {"choices": [], "usage": done.usage.model_dump(mode="json")}) if include_usage else ""
    left_out = {"left_out": done.model_info.left_out} if done.model_info.left_out else {}
    return chunk_event(frame | left_out, {}, done.finish_reason) + usage + DONE_EVENT
