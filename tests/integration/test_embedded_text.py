"""The embedded text engine in its process: it is killed, it hangs, it is shared by tenants. No request is lost, and the state is true."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.engines.language.embedded_text import EmbeddedTextEngine, continue_text, open_embedded_text_engine
from actors.engines.language.requests import GenerationChunk, GenerationRequest, PromptTooLong, TextModelOptions
from actors.engines.language.tiny_llama import write_tiny_llama
from bus.errors import EngineCrashed, PermanentError
from tests.support.broker_client import wait_until
from tests.support.text_runs import write_adapter

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.models, pytest.mark.timeout(240)]
LETTERS = {"type": "string", "pattern": "^[a-z]{300}$"}
"""Of 300 tokens, since the vocabulary is bytes: an answer that a test can interrupt."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTextEngine]:
    write_tiny_llama(folder := tmp_path_factory.mktemp("model"), num_layers=8)
    loras = {"brand": write_adapter(folder, folder / "brand")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_STEP_SECONDS", "4")
        async with open_embedded_text_engine(
            TextModelOptions(str(folder), max_rows=2, threads=1, stall_seconds=1, loras=loras), lambda _: None
        ) as engine:
            await asyncio.wait_for(engine.ready(), 180)
            yield engine


def letters(seed: int = 1, **options: Any) -> GenerationRequest:
    request = GenerationRequest([{"role": "user", "content": "?"}], 340, temperature=1.5, top_p=1, schema=LETTERS, seed=seed, stream=True)
    return replace(request, **options)


async def write(engine: EmbeddedTextEngine, request: GenerationRequest) -> str:
    return "".join([chunk.text async for chunk in engine.generate(request, None)])


async def is_generating(engine: EmbeddedTextEngine, tokens: int) -> bool:
    return engine.generated_tokens > tokens + 20


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_stream_goes_on_where_its_process_ended(engine: EmbeddedTextEngine, how: signal.Signals) -> None:
    """Killed, or stopped, which the state reports and the heartbeat finds; the neighbour's answer is whole, too."""
    expected = [await write(engine, letters(seed)) for seed in (1, 2)]
    before, process = engine.generated_tokens, engine.executor.process_id
    assert process is not None
    pending = asyncio.gather(write(engine, letters(1)), write(engine, letters(2, stream=False)))
    await wait_until(lambda: is_generating(engine, before), 20)
    os.kill(process, how)
    if how == signal.SIGSTOP:
        await asyncio.sleep(2)
        state = await engine.state()
        assert state.running == 2
        assert state.silent_seconds is not None
        assert state.silent_seconds > 1.5
        assert "no token for" in (await engine.unavailable_reason() or "")
    assert await asyncio.wait_for(pending, 120) == expected
    assert engine.executor.process_id != process
    assert (await engine.state()).running == 0


TOOL = {
    "name": "write",
    "parameters": {"type": "object", "properties": {"text": LETTERS}, "required": ["text"], "additionalProperties": False},
}
CALLING: dict[str, Any] = {
    "schema": None, "tools": ({"type": "function", "function": TOOL},), "tool_name": "write", "max_tokens": 460, "logprobs": 1,
}  # fmt: skip


async def read_chunks(engine: EmbeddedTextEngine, request: GenerationRequest) -> list[GenerationChunk]:
    return [chunk async for chunk in engine.generate(request, None)]


def joined(chunks: list[GenerationChunk]) -> tuple[object, ...]:
    calls = [call for chunk in chunks for call in chunk.tool_calls]
    arguments = "".join(call.arguments for call in calls)
    return (calls[0].id, calls[0].name), arguments, [entry.text for chunk in chunks for entry in chunk.logprobs], chunks[-1].finish_reason


async def test_call_goes_on_where_its_process_was_killed(engine: EmbeddedTextEngine) -> None:
    """With the same id, and no part twice. A call has no log probabilities."""
    expected = joined(await read_chunks(engine, letters(**CALLING)))
    assert expected[2:] == ([], "tool_calls")
    assert len(json.loads(str(expected[1]))["text"]) == 300
    before, process = engine.generated_tokens, engine.executor.process_id
    assert process is not None
    pending = asyncio.create_task(read_chunks(engine, letters(**CALLING)))
    await wait_until(lambda: is_generating(engine, before + 100), 20)
    os.kill(process, signal.SIGKILL)
    chunks = await asyncio.wait_for(pending, 120)
    assert joined(chunks) == expected
    assert len([chunk for chunk in chunks if chunk.tool_calls]) > 20
    assert "".join(chunk.text for chunk in chunks) == ""


async def test_adapters_are_served_by_name(engine: EmbeddedTextEngine) -> None:
    """Also by a process that was started again; the state lists them, for /v1/models."""
    assert (await engine.state()).loras == ("brand",)
    request = letters(schema=None, max_tokens=12, temperature=0)
    plain, adapted = [await write(engine, replace(request, lora=name)) for name in (None, "brand")]
    assert plain != adapted
    with pytest.raises(PermanentError, match="TEXT_LORAS names brand"):
        await write(engine, replace(request, lora="loud"))


async def test_usage_has_cached_tokens_and_the_device_seconds(engine: EmbeddedTextEngine) -> None:
    request = letters(schema=None, max_tokens=4, messages=[{"role": "user", "content": "once more " * 20}])
    first, second = [(await read_chunks(engine, request))[-1] for _ in range(2)]
    assert (first.cached_tokens, second.cached_tokens) == (0, second.prompt_tokens - 1)
    assert 0 < (second.device_seconds or 0) < (first.device_seconds or 0)
    assert engine.snapshot()["engine_prefix_cache_bytes"] > 0


async def test_tenants_take_turns(engine: EmbeddedTextEngine) -> None:
    """Two rows: the only request of one tenant overtakes the many of another."""
    order: list[str] = []

    async def ask(tenant: str, seed: int) -> None:
        await write(engine, letters(seed, tenant=tenant, stream=False))
        order.append(tenant)

    many = [asyncio.create_task(ask("many", seed)) for seed in range(8)]
    await asyncio.sleep(0.05)
    await ask("one", 9)
    await asyncio.gather(*many)
    assert order.index("one") <= 4
    assert len(order) == 9


async def test_prompt_over_context_raises_its_numbers_over_the_pipe(engine: EmbeddedTextEngine) -> None:
    with pytest.raises(PromptTooLong) as raised:
        await write(engine, letters(messages=[{"role": "user", "content": "x" * 400_000}]))
    assert (raised.value.limit, raised.value.tokens > 2048) == (2048, True)
    assert len(await write(engine, letters())) == 302


async def test_closed_stream_cancels_its_row(engine: EmbeddedTextEngine) -> None:
    chunks = engine.generate(letters(), None)
    await anext(chunks)
    await chunks.aclose()
    before = engine.executor.stats.cancelled

    async def is_cancelled() -> bool:
        return engine.executor.running == 0 and engine.executor.stats.cancelled >= before

    await wait_until(is_cancelled, 5)
    assert (await engine.state()).running == 0


@pytest.mark.parametrize(
    ("sent", "text", "start", "new"), [("", "ab", 0, "ab"), ("ab", "c", 2, "c"), ("abc", "ab", 0, ""), ("abc", "bcd", 1, "d")]
)
async def test_repeated_text_is_sent_once(sent: str, text: str, start: int, new: str) -> None:
    assert continue_text(sent, text, start) == new


async def test_other_text_after_a_restart_fails_the_attempt(tmp_path: Path) -> None:
    with pytest.raises(EngineCrashed):
        continue_text("abc", "axc", 0)
    with pytest.raises(EngineCrashed):
        continue_text("abc", "e", 4)
