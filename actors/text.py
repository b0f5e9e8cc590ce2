"""Text: a language model writes: the next turn of a conversation, or an answer to messages that nobody keeps.

Reads `message` or `messages`; returns `response` with its timings. With `stream` every piece is said as it is written.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from asyncpg import Connection

from actors.engines.language.requests import GenerationChunk, GenerationRequest, PromptTooLong, TextEngine
from actors.llm import conversation_repository
from actors.llm.conversation_repository import ConversationRepository, History, append_turn, open_conversations
from actors.llm.json_extraction import extract_json_object
from actors.llm.prompt_builder import Prompt, PromptBuilder, reduce_turns, with_history
from actors.llm.settings import TextSettings
from actors.llm.shared_engine import open_text_engine
from actors.settings import AttachmentSettings
from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.errors import PermanentError, TemporaryError
from contracts.text import GetTextStatus, ModelInfo, Text, TextDelta, TextDone, TextStatus, Timings, Usage
from contracts.wire import Step

READY_TIMEOUT_SECONDS = 2.0
MAX_AD_COPY_CHARS = 500
ANY_JSON_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Dependencies:
    """What the handler works with."""

    engine: TextEngine
    prompt_builder: PromptBuilder
    repository: ConversationRepository | None
    settings: TextSettings


@dataclass
class GenerationRun:
    """One answer while it is made. Moments are of `time.perf_counter`."""

    started_at: float = field(default_factory=time.perf_counter)
    submitted_at: float = 0.0
    first_token_at: float | None = None
    finished_at: float = 0.0
    texts: list[str] = field(default_factory=list)
    delta_count: int = 0
    last_chunk: GenerationChunk = field(default_factory=lambda: GenerationChunk("", 0))


@asynccontextmanager
async def open_text(resources: Resources) -> AsyncIterator[Handler]:
    settings = TextSettings()
    async with open_text_engine(settings, resources.set_unready) as writer, open_conversations(resources.database) as kept:
        desk = Dependencies(writer, PromptBuilder(resources.claims, AttachmentSettings()), kept, settings)
        yield partial(generate, dependencies=desk)


@asynccontextmanager
async def open_status(resources: Resources) -> AsyncIterator[Handler]:
    settings = TextSettings()
    async with open_text_engine(settings) as writer:
        yield partial(get_status, engine=writer, settings=settings)


async def generate(command: Text, context: Context, *, dependencies: Dependencies) -> TextDone | Transactional:
    work = GenerationRun()
    asked = await dependencies.prompt_builder.build(command)
    if command.message is None:
        return await generate_within_context(command, context, asked, None, work, dependencies)
    if dependencies.repository is None:
        raise PermanentError("database-missing", "conversations are kept in Postgres: set DATABASE_URL, or send messages")
    async with AsyncExitStack() as turn:
        past = await lock_and_load_history(command, context, dependencies.repository, turn)
        done = await generate_within_context(command, context, asked, past, work, dependencies)

        async def append(connection: Connection) -> None:
            await append_turn(connection, past, asked.user_message, done.response)

        return Transactional(done, append, turn.pop_all().aclose)


async def lock_and_load_history(command: Text, context: Context, repository: ConversationRepository, exit_stack: AsyncExitStack) -> History:
    """The conversation as it is once every turn before this one is over."""
    tenant = context.tenant or ""
    named = await repository.resolve_id(command.conversation_id, tenant, context.message_id)
    await exit_stack.enter_async_context(repository.lock_conversation(named))
    return await repository.load_history(named, tenant)


async def generate_within_context(
    command: Text, context: Context, prompt: Prompt, history: History | None, run: GenerationRun, dependencies: Dependencies
) -> TextDone:
    """Tried with the whole past first, then with as many of its last turns as fit; with fewer tokens to write when that is not enough."""
    said_before = history.messages if history else ()
    draft = build_request(command, prompt, context, dependencies.settings)
    turns = await count_turns_that_fit(prompt, said_before, draft.max_tokens, dependencies.engine)
    while True:
        draft = with_messages(draft, with_history(prompt, said_before, turns))
        run.submitted_at = time.perf_counter()
        try:
            await consume_stream(draft, context, run, dependencies.engine)
            return build_result(command, prompt, history, draft, run, await dependencies.engine.ready(), dependencies.settings)
        except PromptTooLong as error:
            if not turns:
                draft = limit_max_tokens(draft, error)
            turns = reduce_turns(said_before, turns, error.tokens + draft.max_tokens, error.limit) if turns else 0


async def count_turns_that_fit(prompt: Prompt, messages_before: tuple[tuple[str, str], ...], max_tokens: int, engine: TextEngine) -> int:
    """So many of the past's last turns leave room for the answer."""
    turns = len(messages_before) // 2
    while turns:
        messages = with_history(prompt, messages_before, turns)
        counted = await engine.count_tokens(messages)
        if counted is None or counted[0] + max_tokens <= counted[1]:
            break
        turns = reduce_turns(messages_before, turns, counted[0] + max_tokens, counted[1])
    return turns


def build_request(command: Text, prompt: Prompt, context: Context, settings: TextSettings) -> GenerationRequest:
    def chosen(value: Any, otherwise: Any) -> Any:
        return otherwise if value is None else value

    return GenerationRequest(
        messages=prompt.messages,
        max_tokens=max(1, min(command.max_tokens or settings.max_tokens_cap, settings.max_tokens_cap)),
        temperature=chosen(command.temperature, settings.temperature),
        top_p=chosen(command.top_p, settings.top_p),
        repetition_penalty=chosen(command.repetition_penalty, settings.repetition_penalty),
        presence_penalty=command.presence_penalty or 0,
        frequency_penalty=command.frequency_penalty or 0,
        stop=tuple(command.stop),
        seed=command.seed,
        lora=command.lora_adapter or settings.default_lora_adapter,
        schema=command.json_schema or (ANY_JSON_OBJECT if command.json_only else None),
        stream=command.stream and context.send_delta is not None,
    )


def with_messages(request: GenerationRequest, messages: list[dict[str, Any]]) -> GenerationRequest:
    return GenerationRequest(**(vars(request) | {"messages": messages}))


def limit_max_tokens(request: GenerationRequest, error: PromptTooLong) -> GenerationRequest:
    """The same with no more tokens to write than the context has room for. Raises the error when it has none."""
    room = error.limit - error.tokens
    if not 0 < room < request.max_tokens:
        raise error
    return GenerationRequest(**(vars(request) | {"max_tokens": room}))


async def consume_stream(request: GenerationRequest, context: Context, run: GenerationRun, engine: TextEngine) -> None:
    """Take what is written, and say it where somebody listens."""
    async with aclosing(engine.generate(request, context.deadline)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            if run.first_token_at is None and request.stream:
                run.first_token_at = time.perf_counter()
            run.texts.append(piece.text)
            run.last_chunk = piece
            if request.stream and piece.text and context.send_delta:
                await context.send_delta(TextDelta(sequence=run.delta_count, delta=piece.text, tokens=piece.completion_tokens))
                run.delta_count += 1
    run.finished_at = time.perf_counter()


def build_result(
    command: Text,
    prompt: Prompt,
    history: History | None,
    request: GenerationRequest,
    run: GenerationRun,
    model: str,
    settings: TextSettings,
) -> TextDone:
    response, last = "".join(run.texts), run.last_chunk
    parsing = time.perf_counter()
    found = extract_json_object(response)
    parsed = time.perf_counter()
    generation = run.finished_at - run.submitted_at
    timings = Timings(
        generation_ms=to_milliseconds(generation),
        total_ms=to_milliseconds(parsed - run.started_at),
        endpoint_total_ms=to_milliseconds(parsed - run.started_at),
        json_parse_ms=to_milliseconds(parsed - parsing),
        first_token_ms=to_milliseconds(run.first_token_at - run.submitted_at) if run.first_token_at else None,
        tokens_generated=last.completion_tokens,
        tokens_per_second=round(last.completion_tokens / generation, 2) if generation else 0.0,
    )
    info = ModelInfo(
        engine=prompt.engine_label,
        model_name=model,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        lora_adapter=request.lora or "base",
        timings=timings,
    )
    return TextDone(
        response=response,
        conversation_id=history.conversation_id if history else None,
        generation_time=round(parsed - run.started_at, 2),
        model_info=info,
        response_json=found,
        response_is_json=found is not None,
        finish_reason=last.finish_reason or "stop",
        usage=Usage(
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            total_tokens=last.prompt_tokens + last.completion_tokens,
        ),
        deltas=run.delta_count if request.stream else None,
        text=to_single_line(response) if command.slip else None,
        ad_copy_text=to_single_line(response) if command.slip else None,
    )


def to_single_line(response: str) -> str:
    """As long as an overlay takes it. What cannot be printed is left out."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in response).split())[:MAX_AD_COPY_CHARS].strip()


def to_milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


async def get_status(command: GetTextStatus, context: Context, *, engine: TextEngine, settings: TextSettings) -> TextStatus:
    """Raises TemporaryError while the model loads or its server is away."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            model, state = await engine.ready(), await engine.state()
    except TimeoutError:
        raise TemporaryError("the model is loading", code="loading") from None
    silent = time.time() - state.last_token_at if state.last_token_at else 0.0
    return TextStatus(
        model_name=model,
        engine=engine.name,
        engine_status="stalled" if state.running and silent > settings.stall_seconds else "running",
        running_requests=state.running,
        pending_requests=state.waiting,
        tokens_generated=state.generated_tokens,
        last_token_at=state.last_token_at,
        max_model_len=state.max_model_len,
        lora_adapters=list(state.loras),
        device=state.device,
        engine_config=state.config,
        versions=state.versions,
    )


ACTORS = (
    Actor(
        step=Step.TEXT,
        command=Text,
        result=TextDone,
        open=open_text,
        timeout_seconds=600,
        prefetch=32,
        schema=conversation_repository.SCHEMA,
        description="Writes with a language model.",
    ),
    Actor(
        step="text.status",
        command=GetTextStatus,
        result=TextStatus,
        open=open_status,
        timeout_seconds=10,
        prefetch=8,
        deduplicate=False,
        emit_events=False,
        is_query=True,
        description="Tells how the writing worker is.",
    ),
)
