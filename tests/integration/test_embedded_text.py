"""The embedded text engine in its process: it is killed, it hangs, it is shared by tenants. No request is lost, and the state is true."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.engines.language.embedded_text import EmbeddedTextEngine, continue_text, open_embedded_text_engine
from actors.engines.language.requests import GenerationRequest, PromptTooLong, TextModelOptions
from actors.engines.language.tiny_llama import write_tiny_llama
from bus.errors import EngineCrashed
from tests.support.broker_client import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.models, pytest.mark.timeout(240)]
LETTERS = {"type": "string", "pattern": "^[a-z]{300}$"}
"""Of 300 tokens, since the vocabulary is bytes: an answer that a test can interrupt."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTextEngine]:
    write_tiny_llama(folder := tmp_path_factory.mktemp("model"), num_layers=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_STEP_SECONDS", "4")
        async with open_embedded_text_engine(
            TextModelOptions(str(folder), max_rows=2, threads=1, stall_seconds=1), lambda _: None
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
