"""Text: a language model generates the next turn of a conversation, or an answer to messages that are not stored.

Reads `message`, `messages` or `raw_prompt`; returns `response` with its timings. With `stream` each chunk is sent as a delta while it is
generated.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from asyncpg import Connection

from actors.attachments.documents import DocumentReader
from actors.engines.language.embedded_text import EmbeddedTextEngine
from actors.engines.language.requests import TextEngine
from actors.llm.conversation_repository import (
    DATABASE_MISSING,
    SCHEMA,
    ConversationRepository,
    History,
    append_turn,
    open_conversations,
)
from actors.llm.prompt_builder import PromptBuilder
from actors.llm.settings import TextSettings
from actors.llm.text_answer import TextDependencies, answer_job, prepare_job
from actors.llm.text_engines import open_text_engine
from actors.settings import AttachmentSettings
from bus.actor import Actor, Context, Handler, Resources, Transactional, query_actor
from bus.errors import PermanentError, TemporaryError
from contracts.text import GetTextStatus, Text, TextDone, TextStatus
from contracts.wire import Step

READY_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Dependencies:
    """What the handler of `text` needs. `repository`: None without a database."""

    text: TextDependencies
    repository: ConversationRepository | None


@asynccontextmanager
async def open_text(resources: Resources) -> AsyncIterator[Handler]:
    settings, attachments = TextSettings(), AttachmentSettings()
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_text_engine(settings, resources.shared, resources.set_unready))
        if isinstance(engine, EmbeddedTextEngine):  # a server and vLLM report their metrics themselves
            resources.register_engine(engine)
        repository = open_conversations(resources) if resources.database else None
        prompt_builder = PromptBuilder(resources.claims, DocumentReader(attachments), attachments)
        yield partial(generate, dependencies=Dependencies(TextDependencies(engine, prompt_builder, settings), repository))


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
    job = await prepare_job(command, context, dependencies.text)
    if command.message is None:
        return await answer_job(job, context, dependencies.text)
    if dependencies.repository is None:
        raise PermanentError("database-missing", f"{DATABASE_MISSING}, or send messages")
    async with AsyncExitStack() as conversation_lock:
        history = await lock_and_load_history(command, context, dependencies.repository, conversation_lock)
        done = await answer_job(replace(job, history=history), context, dependencies.text)

        async def write(connection: Connection) -> None:
            await append_turn(connection, history, job.prompt.user_message, done.response)

        return Transactional(done, write, conversation_lock.pop_all().aclose)


async def lock_and_load_history(command: Text, context: Context, repository: ConversationRepository, exit_stack: AsyncExitStack) -> History:
    """The conversation once every turn before this one has ended."""
    tenant = context.tenant or ""
    conversation_id = await repository.resolve_id(command.conversation_id, tenant, context.message_id)
    await exit_stack.enter_async_context(repository.lock_conversation(conversation_id))
    return await repository.load_history(conversation_id, tenant)


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
