"""The figures of the text and vision benchmarks: medians, ratios round by round, and the tables of the page."""

from pathlib import Path

from actors.engines.language.tiny_vision import TINY_VISION
from benchmarks import arguments, report_page, text, vlm
from benchmarks.text_sides import SIDES, TokenRound

CHARTS = Path("unused")


def test_text_table_has_every_side_and_the_prefix_cache() -> None:
    rounds = {side: [TokenRound(tokens, 1.0), TokenRound(tokens, 2.0)] for side, tokens in {"embedded": 30, "generate": 20}.items()}
    figures = text.summarize({4: rounds})
    assert figures["tokens_per_second"]["4"] == {"embedded": 22.5, "generate": 15.0}
    assert (figures["over_generate"], figures["over_direct"], figures["over_vllm"]) == ({"4": 1.5}, {}, {})
    times = {"with": {"first": 9.0, "following": 2.0}, "without": {"first": 9.0, "following": 8.0}}
    figures |= {"prefix_cache": {"first_token_ms": times, "speedup": 4.0, "cached_tokens": 1500}, "left_out": {"bus": "no vLLM"}}

    page = report_page.text(figures, CHARTS)

    assert "| 4 | 22.5 | 15.0 |  | 1.5 |  |" in page
    assert "| with the cache | 9.0 | 2.0 |" in page
    assert "1500 tokens of a following prompt were cached; its first token came 4.0 times as fast." in page
    assert "bus is left out: no vLLM." in page


def test_vision_table_has_both_sides_of_each_family() -> None:
    family = vlm.summarize({1: {"engine": [8.0, 10.0], "generate": [10.0, 10.0]}, 16: {"engine": [40.0, 40.0], "generate": [20.0, 10.0]}})
    assert family["over_generate"] == {"1": 0.9, "16": 3.0}
    assert family["batch_speedup"] == {"16": 4.5}
    figures = {"families": {"llava": family | {"family": "LLaVA-1.5"}}, "left_out": {"vllm": "no torchvision"}}

    page = report_page.vlm(figures, CHARTS)

    assert "| LLaVA-1.5 | 1 | 9.0 | 10.0 | 0.9 |  |" in page
    assert "| LLaVA-1.5 | 16 | 40.0 | 15.0 | 3.0 | 4.5 |" in page
    assert "vllm is left out: no torchvision." in page


def test_choices_of_the_command_are_those_that_can_be_measured() -> None:
    assert arguments.TEXT_SIDES == SIDES
    assert {f"tiny-{family}" for family in arguments.VISION_FAMILIES} == {"tiny-llava", *TINY_VISION}
