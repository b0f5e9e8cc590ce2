"""The text benchmark, small: the gateway and the direct clients get the same tokens from the same vLLM server; each side answers."""

import asyncio
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import prefix_cache, text, text_sides
from benchmarks.text_sides import TokenRound
from tests.support.external_programs import START_SECONDS, VllmServer


def arguments(*sides: str) -> Namespace:
    return Namespace(clients=[2], each=1, tokens=8, rounds=1, sides=sides, dtype="bfloat16")


@pytest.fixture
def shared_vllm(running_vllm: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that other tests use as well, in place of one more with such a model, which takes a minute of processor time to start."""

    @contextmanager
    def reuse(model: Path, log: Path, *, arguments: Sequence[str]) -> Iterator[VllmServer]:
        assert (model / "config.json").exists()
        assert arguments == ["--dtype", "bfloat16"], "as the shared one runs"
        yield running_vllm

    monkeypatch.setattr(text_sides, "vllm_server", reuse)


@pytest.mark.models
@pytest.mark.timeout(START_SECONDS + 120)
@pytest.mark.usefixtures("shared_vllm")
def test_gateway_and_direct_server_generate_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "HIDDEN_SIZE", 64)
    figures = asyncio.run(text.measure(arguments("bus", "direct")))
    tokens = figures["tokens_each_round"]["2"]
    assert tokens["bus"] == tokens["direct"] > 0
    assert figures["over_direct"]["2"] > 0
    assert (figures["over_generate"], figures["prefix_cache"]) == ({}, None)


@pytest.mark.models
@pytest.mark.timeout(480)
def test_embedded_engine_and_generate_answer_same_requests(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without vLLM, its sides are left out with the reason. The cache of prefixes is used by the engine that has one."""
    monkeypatch.setattr(text, "HIDDEN_SIZE", 64)
    monkeypatch.setattr(text, "VLLM_PYTHON", Path("/nowhere/python"))
    figures = asyncio.run(text.measure(arguments()))
    assert set(figures["tokens_per_second"]["2"]) == {"embedded", "generate"}
    assert 0 < figures["tokens_each_round"]["2"]["embedded"] <= 16
    assert figures["over_generate"]["2"] > 0
    assert figures["prefix_cache"]["cached_tokens"] > prefix_cache.SYSTEM_CHARS
    assert figures["prefix_cache"]["speedup"] > 0
    assert set(figures["left_out"]) == {"bus", "direct"}
    assert "embedded over generate, 2 clients" in text.format_text(figures)
    assert "2 clients, embedded: " in capsys.readouterr().err


def test_share_is_median_of_round_ratios() -> None:
    over_bus, direct = ([TokenRound(tokens, seconds) for seconds in (1.0, 2.0)] for tokens in (90, 100))
    figures = text.summarize({16: {"bus": over_bus, "direct": direct}})
    assert figures["over_direct"] == {"16": 0.9}
    assert figures["tokens_per_second"]["16"] == {"bus": 67.5, "direct": 75.0}
