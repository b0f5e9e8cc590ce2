"""One answer of a text engine: the request, as much history as fits the model's context, and the stream of chunks."""

import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from actors.engines.language.requests import GenerationRequest, PromptTooLong, TextEngine
from actors.llm.conversation_repository import History
from actors.llm.generation_run import GenerationRun
from actors.llm.json_answers import ANY_JSON_OBJECT, check_answer, check_schema
from actors.llm.prompt_builder import Prompt, reduce_turns, with_history
from actors.llm.request_checks import check_tool_schemas
from actors.llm.settings import TextSettings
from bus.actor import Context
from bus.errors import PermanentError
from contracts.text import Text, Tool

CONSTRAINING_ENGINES = frozenset({"embedded", "vllm"})
"""Their answers follow a grammar, so that another one would not differ."""


def build_request(command: Text, prompt: Prompt, context: Context, settings: TextSettings) -> GenerationRequest:
    def or_default(value: Any, default: Any) -> Any:
        return default if value is None else value

    return GenerationRequest(
        messages=prompt.messages,
        max_tokens=answer_limit(command, settings),
        temperature=or_default(command.temperature, settings.temperature),
        top_p=or_default(command.top_p, settings.top_p),
        repetition_penalty=or_default(command.repetition_penalty, settings.repetition_penalty),
        presence_penalty=command.presence_penalty or 0,
        frequency_penalty=command.frequency_penalty or 0,
        stop=tuple(command.stop),
        seed=command.seed,
        lora=command.lora_adapter or settings.default_lora_adapter,
        schema=command.json_schema if command.json_schema is not None else ANY_JSON_OBJECT if command.json_only else None,
        stream=command.stream and context.send_delta is not None,
        tenant=context.tenant or "",
        prompt=command.raw_prompt,
        tools=tuple(map(to_openai_tool, command.tools)),
        tool_choice=command.tool_choice,
        tool_name=command.tool_name,
        parallel_tool_calls=command.parallel_tool_calls,
        logprobs=command.top_logprobs if command.with_logprobs else None,
        reasoning_effort=command.reasoning_effort,
    )


def answer_limit(command: Text, settings: TextSettings) -> int:
    """The most tokens of one answer."""
    return max(1, min(command.max_tokens or settings.max_tokens_cap, settings.max_tokens_cap))


def to_openai_tool(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude_none=True)}


async def check_request(request: GenerationRequest, prompt: Prompt, engine: TextEngine) -> None:
    """Once for all answers of a request. Raises PermanentError("vision-unsupported" · "schema-refused")."""
    if prompt.has_images and await engine.vision() is False:
        raise PermanentError(
            "vision-unsupported", f"The model {await engine.ready()} reads no images. Use a vision model, or send text only."
        )
    if engine.name in CONSTRAINING_ENGINES and request.tool_choice != "none":
        await check_tool_schemas(request.tools, request.tenant)
    if request.schema is not None:
        await check_schema(request.schema, request.tenant)


async def generate_answer(
    request: GenerationRequest, prompt: Prompt, history: History | None, context: Context, run: GenerationRun, engine: TextEngine
) -> GenerationRequest:
    """Generate what `check_request` accepts, and check the JSON and the tool calls that were requested; a server that ignored the JSON is
    asked once more, unless a part of its answer was sent already.

    Returns the request that was served. Raises PermanentError("json-incomplete" · "json-unsupported" · "tool-call-missing"), and
    PromptTooLong.
    """
    constrained = engine.name in CONSTRAINING_ENGINES
    served = await generate_within_context(request, prompt, history, context, run, engine)
    try:
        await check_run(run, served, constrained)
    except PermanentError as error:
        if error.code != "json-unsupported" or run.was_sent or constrained:
            raise
        run.clear()
        served = await generate_within_context(request, prompt, history, context, run, engine)
        await check_run(run, served, constrained)
    return served


async def check_run(run: GenerationRun, served: GenerationRequest, constrained: bool) -> None:
    """Raises PermanentError("tool-call-missing"), and that of `check_answer` for the JSON of an answer without tool calls."""
    reason = run.last_chunk.finish_reason
    was_cut_before_calls = reason == "length" and not run.response
    if reason != "content_filter" and not was_cut_before_calls:
        check_calls(run, served)
    if served.schema is not None and not run.calls:
        await check_answer(run.response, served.schema, reason, served.max_tokens, constrained=constrained, tenant=served.tenant)


def check_calls(run: GenerationRun, served: GenerationRequest) -> None:
    """Raises PermanentError("tool-call-missing") where a call was required, and the model's server ignored it."""
    names = {call.name for call in run.calls.values()}
    if served.tool_name is not None and names != {served.tool_name}:
        wanted = f"a call of {served.tool_name!r} was required (tool_name)"
    elif served.tool_choice == "required" and not names:
        wanted = "a tool call was required (tool_choice)"
    else:
        return
    raise PermanentError("tool-call-missing", f"{wanted}, and the model's answer has none: its server ignores the requirement.")


async def generate_within_context(
    request: GenerationRequest, prompt: Prompt, history: History | None, context: Context, run: GenerationRun, engine: TextEngine
) -> GenerationRequest:
    """Generate with the whole history, else with as many of its last turns as fit, at last with fewer tokens to generate.

    Returns the request that was served. Raises PromptTooLong when the prompt alone does not fit.
    """
    messages = history.messages if history else ()
    turns = await count_turns_that_fit(prompt, messages, request.max_tokens, engine)
    while True:
        request = replace(request, messages=with_history(prompt, messages, turns))
        run.submitted_at = time.perf_counter()
        try:
            await consume_stream(request, context, run, engine)
            return request
        except PromptTooLong as error:
            if not turns:
                request = limit_max_tokens(request, error)
            turns = reduce_turns(messages, turns, error.tokens + request.max_tokens, error.limit) if turns else 0


async def count_turns_that_fit(prompt: Prompt, history: tuple[tuple[str, str], ...], max_tokens: int, engine: TextEngine) -> int:
    """How many of the last turns leave room for `max_tokens` of answer; all of them when the engine cannot count tokens."""
    turns = len(history) // 2
    while turns:
        counted = await engine.count_tokens(with_history(prompt, history, turns))
        if counted is None or counted[0] + max_tokens <= counted[1]:
            break
        turns = reduce_turns(history, turns, counted[0] + max_tokens, counted[1])
    return turns


def limit_max_tokens(request: GenerationRequest, error: PromptTooLong) -> GenerationRequest:
    """The request with no more tokens than the context has left. Raises `error` when it has none left."""
    remaining = error.limit - error.tokens
    if not 0 < remaining < request.max_tokens:
        raise error
    return replace(request, max_tokens=remaining)


async def consume_stream(request: GenerationRequest, context: Context, run: GenerationRun, engine: TextEngine) -> None:
    """Collect the chunks in `run`, which sends them when the caller streams."""
    async with aclosing(engine.generate(request, context.deadline)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            if run.first_token_at is None and request.stream:
                run.first_token_at = time.perf_counter()
            await run.add(chunk)
    run.finished_at = time.perf_counter()
