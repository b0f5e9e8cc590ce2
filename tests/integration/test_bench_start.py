"""The start benchmark, small: a process that became ready has its figures, and what is above a goal is named."""

import asyncio
from pathlib import Path

import pytest

from benchmarks import start
from benchmarks.report_page import TABLES


@pytest.mark.timeout(240)
def test_each_start_is_measured() -> None:
    figures = asyncio.run(start.measure(["upload", "gateway"], rounds=1))
    assert set(figures["processes"]) == {"upload", "gateway"}
    for process in figures["processes"].values():
        assert process["processor_seconds"] > 0
        assert process["ready_seconds"] > 0
        assert 20 < process["memory_mb"] < 200


def test_medians_are_compared_with_the_goals() -> None:
    quick = {"ready_seconds": 0.5, "processor_seconds": 0.4, "memory_mb": 55.0}
    slow, large = quick | {"ready_seconds": 7.0}, quick | {"memory_mb": 64.0}
    figures = start.summarize({"upload": [quick, slow, quick], "watermark": [large, large, quick], "gateway": [large, slow, slow]})
    assert figures["processes"]["upload"] == quick
    assert figures["over_goal"] == {"watermark": ["memory_mb"], "gateway": ["ready_seconds"]}
    assert "watermark  above its goal: memory_mb" in start.format_text(figures)


def test_page_has_a_row_for_each_process(tmp_path: Path) -> None:
    figures = start.summarize({"upload": [{"ready_seconds": 0.5, "processor_seconds": 0.4, "memory_mb": 55.0}]})
    assert "| upload | 0.5 | 0.6 | 0.4 | 55.0 | 60.0 |" in TABLES["start"](figures, tmp_path)
