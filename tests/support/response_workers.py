"""What tests of responses share: a text engine whose chunks a test decides, and the actors with it; the official client's fields."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aio_pika
import pytest

from actors import responses
from actors.engines.language.requests import EngineState, GenerationChunk, GenerationRequest
from bus.actor import Actor
from contracts.broker_names import dead_letter_queue, work_queue

Part = GenerationChunk | Exception | float | asyncio.Event
Script = Callable[[GenerationRequest], Sequence[Part]]
"""The chunks of an answer; an exception is raised, a number is a pause in seconds, an event is waited for."""


class ScriptedEngine:
    """A text engine that plays a script. `requests`: those that arrived; `cancelled`: set when one was closed before its end."""

    name = "embedded"

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[GenerationRequest] = []
        self.cancelled = asyncio.Event()

    async def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncGenerator[GenerationChunk]:
        self.requests.append(request)
        has_ended = False
        try:
            for part in self.script(request):
                if isinstance(part, Exception):
                    raise part
                if isinstance(part, float):
                    await asyncio.sleep(part)
                elif isinstance(part, asyncio.Event):
                    await part.wait()
                else:
                    yield part
            has_ended = True
        finally:
            if not has_ended:
                self.cancelled.set()

    async def ready(self) -> str:
        return "tiny"

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        return None

    async def vision(self) -> bool | None:
        return True

    async def state(self) -> EngineState:
        return EngineState()


def words(text: str, *, pause: float = 0.0, finish: Any = "stop", waits: Mapping[int, asyncio.Event] | None = None) -> list[Part]:
    """A chunk for each word, and the last one with token counts. `waits`: what is waited for before a word, by its number."""
    parts: list[Part] = []
    texts = text.split(" ")
    for number, word in enumerate(texts):
        parts += [waits[number]] if waits and number in waits else []
        parts += [GenerationChunk(word + (" " if number < len(texts) - 1 else ""), number + 1), pause]
    return [*parts, GenerationChunk("", len(texts), finish, prompt_tokens=7, cached_tokens=2)]


def use_engine(monkeypatch: pytest.MonkeyPatch, script: Script) -> ScriptedEngine:
    """The engine that the actors of this process open from now on."""
    engine = ScriptedEngine(script)

    @asynccontextmanager
    async def open_engine(*arguments: Any) -> AsyncGenerator[ScriptedEngine]:
        yield engine

    monkeypatch.setattr(responses, "open_text_engine", open_engine)
    return engine


RESPONSE_ACTORS: tuple[Actor, ...] = responses.ACTORS


async def purge_response_queues(amqp_url: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        for name in [*(work_queue(actor.step) for actor in RESPONSE_ACTORS), dead_letter_queue(responses.RUN_STEP)]:
            try:
                await (await channel.get_queue(name)).purge()
            except aio_pika.exceptions.ChannelNotFoundEntity:
                channel = await connection.channel()
