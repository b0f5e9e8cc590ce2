"""Text: a language model generates the next turn of a conversation, or an answer to messages that are not stored.

Reads `message` or `messages`; returns `response` with its timings. With `stream` each chunk is sent as a delta while it is generated.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from asyncpg import Connection

from actors.attachments.documents import DocumentReader
from actors.engines.language.embedded_text import EmbeddedTextEngine
from actors.engines.language.requests import GenerationRequest, TextEngine
from actors.llm.conversation_repository import (
    DATABASE_MISSING,
    SCHEMA,
    ConversationRepository,
    History,
    append_turn,
    open_conversations,
)
from actors.llm.generation import GenerationRun, build_request, generate_answer
from actors.llm.json_extraction import extract_json_object
from actors.llm.prompt_builder import Prompt, PromptBuilder
from actors.llm.settings import TextSettings
from actors.llm.text_engines import open_text_engine
from actors.settings import AttachmentSettings
from bus.actor import Actor, Context, Handler, Resources, Transactional, query_actor
from bus.errors import PermanentError, TemporaryError
from contracts.text import GetTextStatus, ModelInfo, Text, TextDone, TextStatus, Timings, Usage
from contracts.wire import Step

READY_TIMEOUT_SECONDS = 2.0
MAX_AD_COPY_CHARS = 500


@dataclass(frozen=True)
class Dependencies:
    """What the handler of `text` needs. `repository`: None without a database."""

    engine: TextEngine
    prompt_builder: PromptBuilder
    repository: ConversationRepository | None
    settings: TextSettings


@asynccontextmanager
async def open_text(resources: Resources) -> AsyncIterator[Handler]:
    settings, attachments = TextSettings(), AttachmentSettings()
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_text_engine(settings, resources.shared, resources.set_unready))
        if isinstance(engine, EmbeddedTextEngine):  # a server and vLLM report their metrics themselves
            resources.register_engine(engine)
        repository = open_conversations(resources) if resources.database else None
        prompt_builder = PromptBuilder(resources.claims, DocumentReader(attachments), attachments)
        yield partial(generate, dependencies=Dependencies(engine, prompt_builder, repository, settings))


@asynccontextmanager
async def open_status(resources: Resources) -> AsyncIterator[Handler]:
    settings = TextSettings()
    async with open_text_engine(settings, resources.shared) as engine:
        yield partial(get_status, engine=engine, settings=settings)


ACTORS = (
    Actor(
        step=Step.TEXT,
        command=Text,
        result=TextDone,
        open=open_text,
        timeout_seconds=600,
        prefetch=32,
        schema=SCHEMA,
        description="Generates text with a language model.",
    ),
    query_actor(
        "text.status",
        GetTextStatus,
        TextStatus,
        open_status,
        "Returns the state of the text engine.",
        timeout_seconds=10,
        prefetch=8,
    ),
)


async def generate(command: Text, context: Context, *, dependencies: Dependencies) -> TextDone | Transactional:
    run = GenerationRun()
    prompt = await dependencies.prompt_builder.build(command, context.tenant)
    if command.message is None:
        return await answer(command, context, prompt, None, run, dependencies)
    if dependencies.repository is None:
        raise PermanentError("database-missing", f"{DATABASE_MISSING}, or send messages")
    async with AsyncExitStack() as conversation_lock:
        history = await lock_and_load_history(command, context, dependencies.repository, conversation_lock)
        done = await answer(command, context, prompt, history, run, dependencies)

        async def write(connection: Connection) -> None:
            await append_turn(connection, history, prompt.user_message, done.response)

        return Transactional(done, write, conversation_lock.pop_all().aclose)


async def lock_and_load_history(command: Text, context: Context, repository: ConversationRepository, exit_stack: AsyncExitStack) -> History:
    """The conversation once every turn before this one has ended."""
    tenant = context.tenant or ""
    conversation_id = await repository.resolve_id(command.conversation_id, tenant, context.message_id)
    await exit_stack.enter_async_context(repository.lock_conversation(conversation_id))
    return await repository.load_history(conversation_id, tenant)


async def answer(
    command: Text, context: Context, prompt: Prompt, history: History | None, run: GenerationRun, dependencies: Dependencies
) -> TextDone:
    engine = dependencies.engine
    request = build_request(command, prompt, context, dependencies.settings)
    request = await generate_answer(request, prompt, history, context, run, engine)
    if run.last_chunk.finish_reason == "content_filter" and not run.response and (history or command.slip):
        raise PermanentError("content-filtered", "The model's server filtered the answer; nothing of it is left. Change the message.")
    return build_result(command, prompt, history, request, run, await engine.ready())


def build_result(
    command: Text, prompt: Prompt, history: History | None, request: GenerationRequest, run: GenerationRun, model: str
) -> TextDone:
    response, last = run.response, run.last_chunk
    parsing_at = time.perf_counter()
    response_json = extract_json_object(response)
    parsed_at = time.perf_counter()
    line = to_single_line(response) if command.slip else None
    return TextDone(
        response=response,
        conversation_id=history.conversation_id if history else None,
        generation_time=round(parsed_at - run.started_at, 2),
        model_info=ModelInfo(
            engine=prompt.engine_label,
            model_name=model,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            lora_adapter=request.lora or "base",
            left_out=list(last.left_out) or None,
            timings=build_timings(run, parsing_at, parsed_at),
        ),
        response_json=response_json,
        response_is_json=response_json is not None or request.schema is not None,
        finish_reason=last.finish_reason or "stop",
        usage=Usage(
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            total_tokens=last.prompt_tokens + last.completion_tokens,
        ),
        deltas=run.delta_count if request.stream else None,
        text=line,
        ad_copy_text=line,
    )


def build_timings(run: GenerationRun, parsing_at: float, parsed_at: float) -> Timings:
    generation_seconds, tokens = run.finished_at - run.submitted_at, run.last_chunk.completion_tokens
    return Timings(
        generation_ms=to_milliseconds(generation_seconds),
        total_ms=to_milliseconds(parsed_at - run.started_at),
        endpoint_total_ms=to_milliseconds(parsed_at - run.started_at),
        json_parse_ms=to_milliseconds(parsed_at - parsing_at),
        first_token_ms=to_milliseconds(run.first_token_at - run.submitted_at) if run.first_token_at else None,
        tokens_generated=tokens,
        tokens_per_second=round(tokens / generation_seconds, 2) if generation_seconds else 0.0,
    )


def to_single_line(response: str) -> str:
    """No longer than an overlay accepts, without unprintable characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in response).split())[:MAX_AD_COPY_CHARS].strip()


def to_milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


async def get_status(command: GetTextStatus, context: Context, *, engine: TextEngine, settings: TextSettings) -> TextStatus:
    """Raises TemporaryError while the model loads or its server is unavailable."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            model, state = await engine.ready(), await engine.state()
    except TimeoutError:
        raise TemporaryError("the model is loading", code="loading") from None
    since_last_token = time.time() - state.last_token_at if state.last_token_at else 0.0
    silent_seconds = since_last_token if state.silent_seconds is None else state.silent_seconds
    return TextStatus(
        model_name=model,
        engine=engine.name,
        engine_status="stalled" if state.running and silent_seconds > settings.stall_seconds else "running",
        running_requests=state.running,
        pending_requests=state.waiting,
        tokens_generated=state.generated_tokens,
        last_token_at=state.last_token_at,
        max_model_len=state.max_model_len,
        vision=state.vision,
        lora_adapters=list(state.loras),
        device=state.device,
        gpu_count=state.gpu_count,
        gpu_memory_used=state.gpu_memory_used,
        gpu_memory_total=state.gpu_memory_total,
        gpu_utilization=state.gpu_utilization,
        cache_utilization=state.cache_utilization,
        engine_config=state.config,
        versions=state.versions,
    )
