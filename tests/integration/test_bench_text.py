"""The text benchmark, small: the gateway and the direct clients get the same tokens from the same vLLM server."""

import asyncio
from argparse import Namespace

import pytest

from benchmarks import text
from benchmarks.text import TokenRound
from tests.support.external_programs import START_SECONDS, find_vllm_python


@pytest.mark.models
@pytest.mark.timeout(START_SECONDS + 120)
def test_gateway_and_direct_server_generate_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    find_vllm_python()
    monkeypatch.setattr(text, "HIDDEN_SIZE", 64)
    figures = asyncio.run(text.measure(Namespace(clients=[2], each=1, tokens=8, rounds=1)))
    tokens = figures["tokens_each_round"]["2"]
    assert tokens["bus"] == tokens["direct"] > 0
    assert figures["over_direct"]["2"] > 0


def test_share_is_median_of_round_ratios() -> None:
    over_bus, direct = ([TokenRound(tokens, seconds) for seconds in (1.0, 2.0)] for tokens in (90, 100))
    figures = text.summarize({16: {"bus": over_bus, "direct": direct}})
    assert figures["over_direct"] == {"16": 0.9}
    assert figures["tokens_per_second"]["16"] == {"bus": 67.5, "direct": 75.0}
