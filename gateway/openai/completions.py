"""OpenAI's `POST /v1/completions`: a command to the text worker for each prompt, whose results are returned whole or streamed."""

import asyncio
import time
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from contracts.text import FinishReason, TextDelta, TextDone, TokenLogprob, Usage
from gateway.deadlines import request_timeout
from gateway.openai.chat import error_event, stream_chunks, text_response, to_text_problem
from gateway.openai.chat_answers import DONE_EVENT, ChatUsage, answers_of, chat_usage, completion_id
from gateway.openai.completion_requests import CompletionRequest
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute
from gateway.openai.models import lora_adapter_of
from gateway.problems import REQUEST_ERRORS, HttpProblem
from gateway.services import services_of
from gateway.sse import json_data, sse_response
from gateway.strict_model import HttpModel
from gateway.text.client import generate_text

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)


PROMPTS_AT_A_TIME = 16
"""Of one request, so that those of others get their turn at the worker."""


class CompletionLogprobs(HttpModel):
    """`text_offset`: where each token begins in the text of the choice."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(HttpModel):
    index: int = 0
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class Completion(HttpModel):
    """`choices`: the answers to the first prompt, then those to the next one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: ChatUsage | None = None
    left_out: list[str] | None = None


@router.post("/completions", response_model=Completion, responses=ERROR_RESPONSES)
async def complete(request: Request, body: CompletionRequest) -> Response:
    """Continue a text; with `stream`, as server-sent events. A disconnect cancels the generation."""
    body.check()
    lora = await lora_adapter_of(request, body.model)
    commands = list(body.commands(lora))
    if body.stream:
        chunks = CompletionChunks(body.model, body.stream_options.include_usage)
        return await sse_response(request, stream_chunks(request, commands[0], chunks), error_event)
    results = await generate_all(request, commands, request_timeout(request.headers, services_of(request).settings))
    return await text_response(request, results, lambda: completion_body(results, lora or results[0].model_info.model_name))


async def generate_all(request: Request, commands: list[dict[str, Any]], seconds: float) -> list[TextDone]:
    """The results within `seconds`, in order, PROMPTS_AT_A_TIME. The first failure cancels the others. Raises HttpProblem."""
    until, slots = time.monotonic() + seconds, asyncio.Semaphore(PROMPTS_AT_A_TIME)

    async def generate(command: dict[str, Any]) -> TextDone:
        async with slots:
            return await generate_text(request, command, max(0.1, until - time.monotonic()))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(generate(command)) for command in commands]
    except* (HttpProblem, *REQUEST_ERRORS) as failures:
        failure = failures.exceptions[0]
        assert not isinstance(failure, ExceptionGroup), "no task has a group of its own"
        problem = failure if isinstance(failure, HttpProblem) else to_text_problem(failure)
    else:
        return [task.result() for task in tasks]
    raise problem


def completion_body(results: list[TextDone], model: str) -> dict[str, Any]:
    answers = [answer for done in results for answer in answers_of(done)]
    choices = [
        CompletionChoice(
            index=index, text=answer.response, logprobs=completion_logprobs(answer.logprobs), finish_reason=answer.finish_reason
        )
        for index, answer in enumerate(answers)
    ]
    left_out = sorted({name for done in results for name in done.model_info.left_out or ()})
    completion = Completion(
        id=completion_id("cmpl"), created=int(time.time()), model=model, choices=choices,
        usage=chat_usage(total_usage(results)), left_out=left_out or None,
    )  # fmt: skip
    return completion.model_dump(mode="json", exclude=None if left_out else {"left_out"})


def total_usage(results: list[TextDone]) -> Usage:
    return Usage(**{name: sum(getattr(done.usage, name) for done in results) for name in Usage.model_fields})


def completion_logprobs(tokens: list[TokenLogprob] | None, start: int = 0) -> CompletionLogprobs | None:
    """`start`: where the first token begins."""
    if not tokens:
        return None
    return CompletionLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[{top.text: top.logprob for top in (*token.top, token)} for token in tokens],
        text_offset=list(offsets(tokens, start)),
    )


def offsets(tokens: list[TokenLogprob], start: int) -> Iterator[int]:
    return accumulate((len(token.text) for token in tokens[:-1]), initial=start)


class CompletionChunks:
    """The events of one stream."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self._frame = {"id": completion_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        self._lengths: dict[int, int] = {}

    def delta(self, delta: TextDelta) -> str:
        start = self._lengths.get(delta.choice, 0)
        self._lengths[delta.choice] = start + sum(len(token.text) for token in delta.logprobs)
        logprobs = completion_logprobs(delta.logprobs, start)
        choice = CompletionChoice(index=delta.choice, text=delta.delta, logprobs=logprobs, finish_reason=None)
        return self._event(choice) if delta.delta or logprobs else ""

    def end(self, done: TextDone) -> str:
        choices = [
            CompletionChoice(index=index, text="", finish_reason=answer.finish_reason) for index, answer in enumerate(answers_of(done))
        ]
        frame = {"left_out": done.model_info.left_out} if done.model_info.left_out else {}
        usage = json_data(self._frame | {"choices": [], "usage": chat_usage(done.usage).model_dump(mode="json")})
        return "".join(self._event(choice, frame) for choice in choices) + (usage if self._include_usage else "") + DONE_EVENT

    def _event(self, choice: CompletionChoice, frame: dict[str, Any] | None = None) -> str:
        return json_data(self._frame | (frame or {}) | {"choices": [choice.model_dump(mode="json")]})
