"""OpenAI's `POST /v1/chat/completions`: a command to the text worker, whose result is returned whole or streamed."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError
from contracts.text import TextDelta, TextDone
from gateway.json_body import run_parser
from gateway.memory_budget import hold_bytes
from gateway.openai.chat_answers import ChatChunks, ChatCompletion, completion_body
from gateway.openai.chat_requests import ChatRequest
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute, openai_error, to_openai_problem
from gateway.openai.models import lora_adapter_of
from gateway.problems import REQUEST_ERRORS, RETRY_AFTER, HttpProblem, RequestError
from gateway.services import services_of
from gateway.sse import json_data, sse_response
from gateway.text.client import generate_text, logprob_bytes, stream_text

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

UPLOAD_PATHS = frozenset({"/v1/chat/completions"})


@router.post("/chat/completions", response_model=ChatCompletion, responses=ERROR_RESPONSES)
async def chat(request: Request, body: ChatRequest) -> Response:
    """Generate text; with `stream`, as server-sent events. A disconnect cancels the generation."""
    body.check_text_length(services_of(request).settings.max_body_bytes)
    lora = await lora_adapter_of(request, body.model)
    command = await body.command(request, lora)
    if body.stream:
        chunks = ChatChunks(body.model, in_old_form=body.in_old_form, include_usage=body.stream_options.include_usage)
        return await sse_response(request, stream_chunks(request, command, chunks), error_event)
    try:
        done = await generate_text(request, command)
    except REQUEST_ERRORS as error:
        raise to_text_problem(error) from error
    return await text_response(request, [done], lambda: completion_body(done, lora or done.model_info.model_name, body.in_old_form))


async def text_response(request: Request, results: list[TextDone], build: Callable[[], dict[str, Any]]) -> Response:
    """A body whose log probabilities may be many: its memory is held, and it is built beside the event loop.

    Raises HttpProblem(413, 503).
    """
    size = logprob_bytes(results)
    if size:
        await hold_bytes(request, services_of(request).file_memory, size)
    return await run_parser(lambda: JSONResponse(build()), size=size)


def to_text_problem(error: RequestError) -> HttpProblem:
    """A timeout is a 503, so that clients retry."""
    match error:
        case ReplyFault():
            return to_openai_problem(error)
        case ReplyTimeout() | PublishError():
            return HttpProblem(503, "model-away", str(error), RETRY_AFTER)


class Chunks(Protocol):
    """The events of one stream: of a delta, and those of its end."""

    @property
    def delta(self) -> Callable[[TextDelta], str]: ...

    @property
    def end(self) -> Callable[[TextDone], str]: ...


async def stream_chunks(request: Request, command: dict[str, Any], chunks: Chunks) -> AsyncGenerator[str]:
    """A failure before the first event is raised as HttpProblem; a later one is sent as an event, and the stream ends without [DONE]."""
    started = False
    async with aclosing(stream_text(request, command)) as parts:
        try:
            async for part in parts:
                if event := chunks.delta(part) if isinstance(part, TextDelta) else chunks.end(part):
                    yield event
                    started = True
        except REQUEST_ERRORS as error:
            if not started:
                raise to_text_problem(error) from error
            yield error_event(to_text_problem(error))


def error_event(problem: HttpProblem) -> str:
    return json_data(openai_error(problem))
