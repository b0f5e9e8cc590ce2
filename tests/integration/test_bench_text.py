"""The bench of the writing actor, small: both ways ask the same vLLM, which writes the same for both."""

import asyncio
from argparse import Namespace

import pytest

from ops.bench import text
from ops.bench.text import Round
from tests.vllm_server import START_SECONDS, vllm_python


@pytest.mark.models
@pytest.mark.timeout(START_SECONDS + 120)
def test_both_ways_write_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_python()
    monkeypatch.setattr(text, "HIDDEN", 64)
    told = asyncio.run(text.measured(Namespace(clients=[2], each=1, tokens=8, rounds=1)))
    tokens = told["tokens_each_round"]["2"]
    assert tokens["bus"] == tokens["direct"] > 0
    assert told["over_direct"]["2"] > 0


def test_the_share_is_taken_round_by_round() -> None:
    told = text.figures({16: {"bus": [Round(90, 1.0), Round(90, 2.0)], "direct": [Round(100, 1.0), Round(100, 2.0)]}})
    assert told["over_direct"] == {"16": 0.9}
    assert told["tokens_per_second"]["16"] == {"bus": 67.5, "direct": 75.0}
