"""The bench of the writing actor, small: both ways ask the same vLLM, which writes the same for both."""

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
    monkeypatch.setattr(text, "HIDDEN", 64)
    told = asyncio.run(text.measure(Namespace(clients=[2], each=1, tokens=8, rounds=1)))
    tokens = told["tokens_each_round"]["2"]
    assert tokens["bus"] == tokens["direct"] > 0
    assert told["over_direct"]["2"] > 0


def test_share_is_median_of_round_ratios() -> None:
    told = text.summarize({16: {"bus": [TokenRound(90, 1.0), TokenRound(90, 2.0)], "direct": [TokenRound(100, 1.0), TokenRound(100, 2.0)]}})
    assert told["over_direct"] == {"16": 0.9}
    assert told["tokens_per_second"]["16"] == {"bus": 67.5, "direct": 75.0}
