"""One answer: JSON that a server did not produce is asked for once more, and what cannot be sent to it is refused."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from actors.engines.language.requests import EngineState, GenerationChunk, GenerationRequest, PromptTooLong
from actors.engines.remote.openai_text import cut_at_stop
from actors.engines.remote.request_bodies import check_prompt
from actors.llm.generation import check_request, generate_answer
from actors.llm.generation_run import GenerationRun
from actors.llm.prompt_builder import Prompt
from bus.errors import PermanentError
from contracts.conversation import ConversationMessage
from tests.support.actor_context import make_context

QUESTION = ConversationMessage(role="user", content="?", timestamp=datetime(2026, 1, 1, tzinfo=UTC))


class AnsweringEngine:
    """Gives one answer after the other."""

    name = "answering"

    def __init__(self, *answers: str, vision: bool | None = None) -> None:
        self.answers, self.has_vision = list(answers), vision

    async def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncIterator[GenerationChunk]:
        yield GenerationChunk(self.answers.pop(0), 3)
        yield GenerationChunk("", 3, "stop", 5)

    async def ready(self) -> str:
        return "tiny"

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        return None

    async def vision(self) -> bool | None:
        return self.has_vision

    async def state(self) -> EngineState:
        return EngineState()


async def answer(engine: AnsweringEngine, *, schema: dict[str, Any] | None = None, stream: bool = False, has_images: bool = False) -> str:
    prompt = Prompt([{"role": "user", "content": "?"}], QUESTION, has_images, has_documents=False)
    request = GenerationRequest(prompt.messages, 10, 0, 1, schema=schema, stream=stream)
    run = GenerationRun()
    await check_request(request, prompt, engine)
    await generate_answer(request, prompt, None, make_context(), run, engine)
    return run.response


async def test_json_is_asked_for_once_more() -> None:
    engine = AnsweringEngine("Sure, here it is: {}", '{"a": 1}', "unused")
    assert await answer(engine, schema={"type": "object"}) == '{"a": 1}'
    assert engine.answers == ["unused"]


async def test_json_that_is_not_produced_twice_is_refused() -> None:
    engine = AnsweringEngine("no", "never", "unused")
    with pytest.raises(PermanentError) as raised:
        await answer(engine, schema={"type": "object"})
    assert raised.value.code == "json-unsupported"
    assert engine.answers == ["unused"]


async def test_refused_schema_reaches_no_engine() -> None:
    engine = AnsweringEngine("unused")
    with pytest.raises(PermanentError, match="uniqueItems"):
        await answer(engine, schema={"type": "array", "uniqueItems": True})
    assert engine.answers == ["unused"]


async def test_pictures_for_a_model_without_vision_are_refused_and_sent_where_it_is_unknown() -> None:
    with pytest.raises(PermanentError) as raised:
        await answer(AnsweringEngine("unused", vision=False), has_images=True)
    assert raised.value.code == "vision-unsupported"
    assert await answer(AnsweringEngine("seen", vision=None), has_images=True) == "seen"


async def chunks_of(*texts: str) -> AsyncIterator[GenerationChunk]:
    for number, text in enumerate(texts):
        yield GenerationChunk(text, number)
    yield GenerationChunk("", len(texts), "length", 7)


async def test_stop_sequence_cuts_stream_of_any_server() -> None:
    """Across parts; with the usage of a server that ends soon after it, and without waiting for one that goes on."""
    soon = [chunk async for chunk in cut_at_stop(chunks_of("one t", "wo th", "ree"), ("two",))]
    assert "".join(chunk.text for chunk in soon) == "one "
    assert (soon[-1].finish_reason, soon[-1].prompt_tokens) == ("stop", 7)
    late = [chunk async for chunk in cut_at_stop(chunks_of("one two", *["more"] * 100), ("two",))]
    assert ("".join(chunk.text for chunk in late), late[-1].finish_reason, late[-1].prompt_tokens) == ("one ", "stop", 0)


def request_of(content: Any = "", **fields: Any) -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": content}], 10, 0, 1, **fields)


@pytest.mark.parametrize(
    "request_that_is_long",
    [
        request_of([{"type": "text", "text": "x" * 400_000}]),
        GenerationRequest([], 10, 0, 1, prompt="x" * 400_000),
        request_of(tools=({"type": "function", "function": {"name": "f", "description": "x" * 400_000}},)),
    ],
    ids=["messages", "prompt", "tools"],
)
def test_prompt_that_cannot_fit_is_not_sent(request_that_is_long: GenerationRequest) -> None:
    check_prompt(request_that_is_long, None)
    check_prompt(request_of([{"type": "text", "text": "x" * 8000}, {"type": "image_url"}]), 512)
    with pytest.raises(PromptTooLong) as raised:
        check_prompt(request_that_is_long, 512)
    assert (raised.value.tokens // 10, raised.value.limit) == (2500, 512)
