"""The result of a text command: its answers, generated at the same time, with their times and token counts."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.engines.language.requests import GenerationRequest, TextEngine
from actors.llm.conversation_repository import History
from actors.llm.generation import answer_limit, build_request, check_request, generate_answer
from actors.llm.generation_run import DeltaSender, GenerationRun
from actors.llm.json_extraction import extract_json_object
from actors.llm.prompt_builder import Prompt, PromptBuilder
from actors.llm.request_checks import check_command
from actors.llm.settings import TextSettings
from bus.actor import Context
from bus.errors import PermanentError
from bus.observability.gen_ai import Operation, Provider, trace_model_call
from bus.observability.tracing import is_enabled
from contracts.text import ModelInfo, Text, TextDone, Timings, Usage

MAX_AD_COPY_CHARS = 500
PROVIDERS: dict[str, Provider] = {"embedded": "atelier", "vllm": "vllm"}
"""By the engine's name; others are servers with OpenAI's API."""
SEEDS = 2**64
MAX_TOGETHER = 4
"""Answers of one request that are generated at the same time: others wait, so that requests with many leave places for all."""


@dataclass(frozen=True)
class TextDependencies:
    """What an answer needs. All of it may be shared by several requests."""

    engine: TextEngine
    prompt_builder: PromptBuilder
    settings: TextSettings


@dataclass(frozen=True)
class TextJob:
    """A command with its prompt and, in a conversation, the turns before it. `received_at`: by `time.perf_counter`."""

    command: Text
    prompt: Prompt
    received_at: float
    history: History | None = None


async def answer_text(command: Text, context: Context, dependencies: TextDependencies) -> TextDone:
    """The result of a command with `messages` or `raw_prompt`. Deltas are sent when it streams and the context can send them.

    Raises PermanentError, TemporaryError and PromptTooLong, as `generate_answer`, and PermanentError("invalid-message").
    """
    return await answer_job(await prepare_job(command, context, dependencies), context, dependencies)


async def prepare_job(command: Text, context: Context, dependencies: TextDependencies) -> TextJob:
    """Raises PermanentError("invalid-message"), and the error of a picture or a document that cannot be read."""
    received_at = time.perf_counter()
    check_command(command, answer_limit(command, dependencies.settings))
    return TextJob(command, await dependencies.prompt_builder.build(command, context.tenant), received_at)


async def answer_job(job: TextJob, context: Context, dependencies: TextDependencies) -> TextDone:
    engine, command = dependencies.engine, job.command
    request = build_request(command, job.prompt, context, dependencies.settings)
    deltas = DeltaSender(context.send_delta if request.stream else None)
    runs = [GenerationRun(choice, deltas) for choice in range(command.n)]
    requests = [with_seed_of_choice(request, choice) for choice in range(command.n)]
    await check_request(request, job.prompt, engine)
    served = await generate_all(job, requests, context, runs, engine)
    first = runs[0]
    if first.last_chunk.finish_reason == "content_filter" and not first.response and (job.history or command.slip):
        raise PermanentError("content-filtered", "The model's server filtered the answer; nothing of it is left. Change the message.")
    return build_result(job, served, runs, deltas.count, await engine.ready())


def with_seed_of_choice(request: GenerationRequest, choice: int) -> GenerationRequest:
    """The request of answer `choice`, whose seed stays one of 64 bits with a sign."""
    if request.seed is None:
        return request
    return replace(request, seed=(request.seed + choice + SEEDS // 2) % SEEDS - SEEDS // 2)


async def generate_all(
    job: TextJob, requests: Sequence[GenerationRequest], context: Context, runs: Sequence[GenerationRun], engine: TextEngine
) -> GenerationRequest:
    """Generate every answer, MAX_TOGETHER at a time; when one fails, the others are cancelled. Returns the request that was served for the
    first one.
    """
    places = asyncio.Semaphore(MAX_TOGETHER)

    async def generate_in_turn(request: GenerationRequest, run: GenerationRun) -> GenerationRequest:
        async with places:
            return await generate_traced(request, job, context, run, engine)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(generate_in_turn(request, run)) for request, run in zip(requests, runs, strict=True)]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tasks[0].result()


async def generate_traced(
    request: GenerationRequest, job: TextJob, context: Context, run: GenerationRun, engine: TextEngine
) -> GenerationRequest:
    """`generate_answer` in a span of its own. The model's name is only asked for where there are spans."""
    model = await engine.ready() if is_enabled() else None
    operation: Operation = "chat" if request.prompt is None else "text_completion"
    attributes = span_attributes(request, job)
    with trace_model_call(operation, PROVIDERS.get(engine.name, "openai"), model, **attributes) as call:
        served = await generate_answer(request, job.prompt, job.history, context, run, engine)
        last = run.last_chunk
        call.record(
            response_model=model,
            finish_reasons=[last.finish_reason or "stop"],
            usage_input_tokens=last.prompt_tokens,
            usage_output_tokens=last.completion_tokens,
            usage_cached_tokens=last.cached_tokens or None,
            usage_reasoning_tokens=last.reasoning_tokens or None,
            device_seconds=last.device_seconds,
        )
    return served


def span_attributes(request: GenerationRequest, job: TextJob) -> dict[str, Any]:
    return {
        "conversation_id": str(job.history.conversation_id) if job.history else None,
        "output_type": "text" if request.schema is None else "json",
        "max_tokens": request.max_tokens,
        "temperature": float(request.temperature),
        "top_p": float(request.top_p),
        "frequency_penalty": request.frequency_penalty or None,
        "presence_penalty": request.presence_penalty or None,
        "seed": request.seed,
        "stream": request.stream or None,
    }


def build_result(job: TextJob, request: GenerationRequest, runs: Sequence[GenerationRun], delta_count: int, model: str) -> TextDone:
    answers = [run.to_answer(with_logprobs=job.command.with_logprobs) for run in runs]
    first = answers[0]
    parsing_at = time.perf_counter()
    response_json = extract_json_object(first.response)
    parsed_at = time.perf_counter()
    line = to_single_line(first.response) if job.command.slip else None
    return TextDone(
        **dict(first),
        answers=answers if len(answers) > 1 else [],
        device_seconds=sum_device_seconds(runs),
        conversation_id=job.history.conversation_id if job.history else None,
        generation_time=round(parsed_at - job.received_at, 2),
        model_info=ModelInfo(
            engine=job.prompt.engine_label,
            model_name=model,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            lora_adapter=request.lora or "base",
            left_out=name_left_out(job.command, runs) or None,
            timings=build_timings(job, runs, parsing_at, parsed_at),
        ),
        response_json=response_json,
        response_is_json=response_json is not None or (request.schema is not None and not first.tool_calls),
        usage=count_usage(runs),
        deltas=delta_count if request.stream else None,
        text=line,
        ad_copy_text=line,
    )


def name_left_out(command: Text, runs: Sequence[GenerationRun]) -> list[str]:
    """What the server did not take of the fields that the command has: nothing is missing of the worker's own defaults."""
    names = dict.fromkeys(name for run in runs for name in run.last_chunk.left_out)
    return [name for name in names if name in command.model_fields_set and getattr(command, name) is not None]


def count_usage(runs: Sequence[GenerationRun]) -> Usage:
    """The prompt counts once, however many answers it has; so do its cached tokens, of which those count that no answer had to compute."""
    last = [run.last_chunk for run in runs]
    prompt, completion = last[0].prompt_tokens, sum(chunk.completion_tokens for chunk in last)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_tokens=min(chunk.cached_tokens for chunk in last),
        reasoning_tokens=sum(chunk.reasoning_tokens for chunk in last),
    )


def sum_device_seconds(runs: Sequence[GenerationRun]) -> float | None:
    """None where it is not known of each."""
    seconds = [run.last_chunk.device_seconds for run in runs if run.last_chunk.device_seconds is not None]
    return sum(seconds) if len(seconds) == len(runs) else None


def build_timings(job: TextJob, runs: Sequence[GenerationRun], parsing_at: float, parsed_at: float) -> Timings:
    """From the submission of the first answer to the end of the last one."""
    submitted_at = min(run.submitted_at for run in runs)
    generation_seconds = max(run.finished_at for run in runs) - submitted_at
    tokens = sum(run.last_chunk.completion_tokens for run in runs)
    first_token_at = min((run.first_token_at for run in runs if run.first_token_at), default=None)
    return Timings(
        generation_ms=to_milliseconds(generation_seconds),
        total_ms=to_milliseconds(parsed_at - job.received_at),
        endpoint_total_ms=to_milliseconds(parsed_at - job.received_at),
        json_parse_ms=to_milliseconds(parsed_at - parsing_at),
        first_token_ms=to_milliseconds(first_token_at - submitted_at) if first_token_at else None,
        tokens_generated=tokens,
        tokens_per_second=round(tokens / generation_seconds, 2) if generation_seconds else 0.0,
    )


def to_single_line(response: str) -> str:
    """No longer than an overlay accepts, without unprintable characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in response).split())[:MAX_AD_COPY_CHARS].strip()


def to_milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
