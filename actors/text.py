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

from actors.attachments.settings import AttachmentSettings
from actors.engines.writing import Draft, PromptTooLong, Writer, Written
from actors.writing import conversations
from actors.writing.conversations import Conversations, Past, keep, open_conversations
from actors.writing.objects import object_in
from actors.writing.prompting import Asked, Reader, fewer, with_past
from actors.writing.settings import TextSettings
from actors.writing.writers import open_writer
from bus.actor import Actor, Context, Handler, Tools, Transactional
from bus.errors import PermanentError, TemporaryError
from contracts.text import GetTextStatus, ModelInfo, Text, TextDelta, TextDone, TextStatus, Timings, Usage
from contracts.wire import Step

READY_SECONDS = 2.0
LONGEST_COPY = 500
ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Desk:
    """What the handler works with."""

    writer: Writer
    reader: Reader
    kept: Conversations | None
    settings: TextSettings


@dataclass
class Work:
    """One answer while it is made. Moments are of `time.perf_counter`."""

    began: float = field(default_factory=time.perf_counter)
    handed_over: float = 0.0
    first: float | None = None
    ended: float = 0.0
    text: list[str] = field(default_factory=list)
    deltas: int = 0
    last: Written = field(default_factory=lambda: Written("", 0))


@asynccontextmanager
async def open_text(tools: Tools) -> AsyncIterator[Handler]:
    settings = TextSettings()
    async with open_writer(settings, tools.unready) as writer, open_conversations(tools.database) as kept:
        desk = Desk(writer, Reader(tools.claims, AttachmentSettings()), kept, settings)
        yield partial(write, desk=desk)


@asynccontextmanager
async def open_status(tools: Tools) -> AsyncIterator[Handler]:
    settings = TextSettings()
    async with open_writer(settings) as writer:
        yield partial(status, writer=writer, settings=settings)


async def write(command: Text, context: Context, *, desk: Desk) -> TextDone | Transactional:
    work = Work()
    asked = await desk.reader.asked(command)
    if command.message is None:
        return await answer(command, context, asked, None, work, desk)
    if desk.kept is None:
        raise PermanentError("database-missing", "conversations are kept in Postgres: set DATABASE_URL, or send messages")
    async with AsyncExitStack() as turn:
        past = await in_turn(command, context, desk.kept, turn)
        done = await answer(command, context, asked, past, work, desk)

        async def append(connection: Connection) -> None:
            await keep(connection, past, asked.said, done.response)

        return Transactional(done, append, turn.pop_all().aclose)


async def in_turn(command: Text, context: Context, kept: Conversations, turn: AsyncExitStack) -> Past:
    """The conversation as it is once every turn before this one is over."""
    tenant = context.tenant or ""
    named = await kept.name(command.conversation_id, tenant, context.message_id)
    await turn.enter_async_context(kept.turn(named))
    return await kept.past(named, tenant)


async def answer(command: Text, context: Context, asked: Asked, past: Past | None, work: Work, desk: Desk) -> TextDone:
    """Tried with the whole past first, then with as many of its last turns as fit; with fewer tokens to write when that is not enough."""
    said_before = past.messages if past else ()
    draft = drafted(command, asked, context, desk.settings)
    turns = await turns_that_fit(asked, said_before, draft.max_tokens, desk.writer)
    while True:
        draft = with_messages(draft, with_past(asked, said_before, turns))
        work.handed_over = time.perf_counter()
        try:
            await listen(draft, context, work, desk.writer)
            return result(command, asked, past, draft, work, await desk.writer.ready(), desk.settings)
        except PromptTooLong as error:
            if not turns:
                draft = with_room(draft, error)
            turns = fewer(said_before, turns, error.tokens + draft.max_tokens, error.limit) if turns else 0


async def turns_that_fit(asked: Asked, past: tuple[tuple[str, str], ...], max_tokens: int, writer: Writer) -> int:
    """So many of the past's last turns leave room for the answer."""
    turns = len(past) // 2
    while turns:
        messages = with_past(asked, past, turns)
        counted = await writer.count(messages)
        if counted is None or counted[0] + max_tokens <= counted[1]:
            break
        turns = fewer(past, turns, counted[0] + max_tokens, counted[1])
    return turns


def drafted(command: Text, asked: Asked, context: Context, settings: TextSettings) -> Draft:
    def chosen(value: Any, otherwise: Any) -> Any:
        return otherwise if value is None else value

    return Draft(
        messages=asked.messages,
        max_tokens=max(1, min(command.max_tokens or settings.max_tokens_cap, settings.max_tokens_cap)),
        temperature=chosen(command.temperature, settings.temperature),
        top_p=chosen(command.top_p, settings.top_p),
        repetition_penalty=chosen(command.repetition_penalty, settings.repetition_penalty),
        presence_penalty=command.presence_penalty or 0,
        frequency_penalty=command.frequency_penalty or 0,
        stop=tuple(command.stop),
        seed=command.seed,
        lora=command.lora_adapter or settings.default_lora_adapter,
        schema=command.json_schema or (ANY_OBJECT if command.json_only else None),
        piecewise=command.stream and context.say is not None,
    )


def with_messages(draft: Draft, messages: list[dict[str, Any]]) -> Draft:
    return Draft(**(vars(draft) | {"messages": messages}))


def with_room(draft: Draft, error: PromptTooLong) -> Draft:
    """The same with no more tokens to write than the context has room for. Raises the error when it has none."""
    room = error.limit - error.tokens
    if not 0 < room < draft.max_tokens:
        raise error
    return Draft(**(vars(draft) | {"max_tokens": room}))


async def listen(draft: Draft, context: Context, work: Work, writer: Writer) -> None:
    """Take what is written, and say it where somebody listens."""
    async with aclosing(writer.write(draft, context.deadline)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            if work.first is None and draft.piecewise:
                work.first = time.perf_counter()
            work.text.append(piece.text)
            work.last = piece
            if draft.piecewise and piece.text and context.say:
                await context.say(TextDelta(sequence=work.deltas, delta=piece.text, tokens=piece.tokens))
                work.deltas += 1
    work.ended = time.perf_counter()


def result(command: Text, asked: Asked, past: Past | None, draft: Draft, work: Work, model: str, settings: TextSettings) -> TextDone:
    response, last = "".join(work.text), work.last
    parsing = time.perf_counter()
    found = object_in(response)
    parsed = time.perf_counter()
    generation = work.ended - work.handed_over
    timings = Timings(
        generation_ms=milliseconds(generation),
        total_ms=milliseconds(parsed - work.began),
        endpoint_total_ms=milliseconds(parsed - work.began),
        json_parse_ms=milliseconds(parsed - parsing),
        first_token_ms=milliseconds(work.first - work.handed_over) if work.first else None,
        tokens_generated=last.tokens,
        tokens_per_second=round(last.tokens / generation, 2) if generation else 0.0,
    )
    info = ModelInfo(
        engine=asked.engine,
        model_name=model,
        max_tokens=draft.max_tokens,
        temperature=draft.temperature,
        lora_adapter=draft.lora or "base",
        timings=timings,
    )
    return TextDone(
        response=response,
        conversation_id=past.conversation_id if past else None,
        generation_time=round(parsed - work.began, 2),
        model_info=info,
        response_json=found,
        response_is_json=found is not None,
        finish_reason=last.finish or "stop",
        usage=Usage(prompt_tokens=last.prompt_tokens, completion_tokens=last.tokens, total_tokens=last.prompt_tokens + last.tokens),
        deltas=work.deltas if draft.piecewise else None,
        text=one_line(response) if command.slip else None,
        ad_copy_text=one_line(response) if command.slip else None,
    )


def one_line(response: str) -> str:
    """As long as an overlay takes it. What cannot be printed is left out."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in response).split())[:LONGEST_COPY].strip()


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


async def status(command: GetTextStatus, context: Context, *, writer: Writer, settings: TextSettings) -> TextStatus:
    """Raises TemporaryError while the model loads or its server is away."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            model, state = await writer.ready(), await writer.state()
    except TimeoutError:
        raise TemporaryError("the model is loading", code="loading") from None
    silent = time.time() - state.last_token_at if state.last_token_at else 0.0
    return TextStatus(
        model_name=model,
        engine=writer.name,
        engine_status="stalled" if state.running and silent > settings.stall_seconds else "running",
        running_requests=state.running,
        pending_requests=state.waiting,
        tokens_generated=state.tokens,
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
        schema=conversations.SCHEMA,
        description="Writes with a language model.",
    ),
    Actor(
        step="text.status",
        command=GetTextStatus,
        result=TextStatus,
        open=open_status,
        timeout_seconds=10,
        prefetch=8,
        remembers=False,
        announces=False,
        question=True,
        description="Tells how the writing worker is.",
    ),
)
