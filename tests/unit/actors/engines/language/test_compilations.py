"""Compilations of schemas and tools beside the batch: bounded, ended with their requests, and shared by equal ones."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest

from actors.engines.language import compilation as limits
from actors.engines.language import grammar
from actors.engines.language.compilation import Compilation
from actors.engines.language.grammar import COMPILE_THREADS, GrammarCache
from actors.engines.language.text_model import TextModelEngine
from actors.engines.process.protocol import Failed, Finished
from bus.errors import PermanentError
from tests.support.text_runs import chat, open_engine

pytestmark = pytest.mark.models
SLOW = {"type": "string", "pattern": "^([^y]x?){0,900}$"}


def answer_schema(number: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"const": number}}, "required": ["a"], "additionalProperties": False}


def tools(count: int, chars: int) -> tuple[dict[str, Any], ...]:
    """Each call has a constant of so many characters."""
    schemas = [
        {"type": "object", "properties": {"a": {"const": f"{number:04}" * (chars // 4)}}, "required": ["a"]} for number in range(count)
    ]
    return tuple({"type": "function", "function": {"name": f"tool{number}", "parameters": schema}} for number, schema in enumerate(schemas))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TextModelEngine:
    return open_engine(tmp_path_factory.mktemp("tiny-llama"), max_model_len=2000)


@pytest.fixture
def compiled(engine: TextModelEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The keys of what was compiled, in order. Each compilation of a test begins when those before it have ended."""
    keys: list[str] = []
    compile_ = GrammarCache._compile

    def record(cache: GrammarCache, compilation: Compilation) -> tuple[Any, int]:
        keys.append(compilation.constraint.key)
        return compile_(cache, compilation)

    monkeypatch.setattr(GrammarCache, "_compile", record)
    yield keys
    all_free = threading.Barrier(COMPILE_THREADS)
    for future in [engine._grammars._threads.submit(all_free.wait) for _ in range(COMPILE_THREADS)]:
        future.result()


def events_of(engine: TextModelEngine) -> list[Any]:
    events: list[Any] = []
    while (wait := engine.idle_seconds()) is not None:
        time.sleep(wait)
        events.extend(engine.tick())
    return events


def hold_threads(engine: TextModelEngine) -> list[int]:
    """Both threads compile something slow; its requests."""
    for number in range(COMPILE_THREADS):
        engine.submit(900 + number, chat("?", 40, schema=SLOW | {"title": f"{time.monotonic()} {number}"}))
    return [900 + number for number in range(COMPILE_THREADS)]


def compile_slow_tools(engine: TextModelEngine) -> Compilation:
    """A compilation of many seconds, most of which are steps of the shortest answers."""
    constraint = engine._constraint(chat("?", tools=tools(64, 600), tool_choice="required"), in_reasoning=False)
    assert constraint
    compilation = engine._grammars.compile_in_thread(constraint)
    assert compilation
    return compilation


def test_cancelled_requests_leave_no_compilation(engine: TextModelEngine, compiled: list[str]) -> None:
    """Of those of a tenant that comes and goes, no other waits."""
    held = hold_threads(engine)
    for number in range(300):
        engine.submit(number, chat("?", 60, schema=answer_schema(number)))
        assert engine.cancel(number)
    for number in held:
        engine.cancel(number)
    engine.submit(1000, chat("?", 60, schema=answer_schema(1000)))
    events = events_of(engine)
    assert [json.loads(event.result.text) for event in events if isinstance(event, Finished)] == [{"a": 1000}]
    assert len(compiled) <= COMPILE_THREADS + 1


def test_equal_requests_compile_once(engine: TextModelEngine, compiled: list[str]) -> None:
    """Also when the first of them leaves."""
    for number in range(4):
        engine.submit(number, chat("?", 60, schema=answer_schema(2000)))
    assert engine.cancel(0)
    finished = [event for event in events_of(engine) if isinstance(event, Finished)]
    assert [json.loads(event.result.text) for event in finished] == [{"a": 2000}] * 3
    assert len(compiled) == 1


def test_equal_requests_compile_once_also_when_the_compilation_has_ended(engine: TextModelEngine, compiled: list[str]) -> None:
    """Before the engine's next step."""
    for number in range(2):
        engine.submit(number, chat("?", 60, schema=answer_schema(2001)))
        (compilation,) = {row.compilation for row in engine._compiling if row.compilation}
        wait([compilation.future])
    assert len([event for event in events_of(engine) if isinstance(event, Finished)]) == 2
    assert len(compiled) == 1
    assert not any(other.rows for other in engine._grammars._compilations.values())


def test_request_after_a_cancelled_one_gets_its_answer(engine: TextModelEngine) -> None:
    held = hold_threads(engine)
    engine.submit(1, chat("?", 60, schema=answer_schema(3000)))
    engine.cancel(1)
    engine.submit(2, chat("?", 60, schema=answer_schema(3000)))
    for number in held:
        engine.cancel(number)
    assert [event.request_id for event in events_of(engine) if isinstance(event, Finished)] == [2]


def test_compilation_ends_soon_after_its_limit(engine: TextModelEngine, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only its request: the thread is free again."""
    monkeypatch.setattr(limits, "COMPILE_SECONDS", 0.5)
    monkeypatch.setattr(grammar, "MAX_TOGETHER_TOKENS", 10**6)
    compilation = compile_slow_tools(engine)
    while not compilation.is_due():
        time.sleep(0.01)
    with pytest.raises(PermanentError, match=r"takes more than 0\.5 s: simplify it, or send fewer tools"):
        compilation.result()
    ended_at = time.monotonic()
    while not compilation.future.done():
        assert time.monotonic() < ended_at + 2
        time.sleep(0.01)


def test_compilation_of_a_cancelled_request_ends(engine: TextModelEngine, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MAX_TOGETHER_TOKENS", 10**6)
    compilation = compile_slow_tools(engine)
    while not compiled:
        time.sleep(0.01)
    compilation.leave()
    left_at = time.monotonic()
    while not compilation.future.done():
        assert time.monotonic() < left_at + 2
        time.sleep(0.01)


def test_tools_with_too_long_calls_are_refused(engine: TextModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPILE_SECONDS", 100)
    monkeypatch.setattr(grammar, "MAX_TOGETHER_TOKENS", 300)
    engine.submit(1, chat("?", 300, tools=tools(4, 100), tool_choice="required"))
    engine.submit(2, chat("?", 300, tools=tools(1, 100), tool_choice="required"))
    events = events_of(engine)
    assert [(event.request_id, event.code) for event in events if isinstance(event, Failed)] == [(1, "schema-refused")]
    assert "of all tools have more than 300 tokens together" in next(event.message for event in events if isinstance(event, Failed))
    assert [event.request_id for event in events if isinstance(event, Finished)] == [2]


def test_request_whose_compilation_does_not_begin_is_tried_again_later(engine: TextModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPILE_WAIT_SECONDS", 0.05)
    held = hold_threads(engine)
    while not all(row.compilation and row.compilation.future.running() for row in engine._compiling):
        time.sleep(0.001)
    engine.submit(1, chat("?", 60, schema=answer_schema(4000)))
    failures = [event for event in events_of(engine) if isinstance(event, Failed) and event.request_id not in held]
    assert [(event.request_id, event.kind, event.code) for event in failures] == [(1, "temporary", "engine-full")]
