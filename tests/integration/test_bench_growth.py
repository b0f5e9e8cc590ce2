"""The growth and ledger benchmarks, small: they measure every requested backlog, number of workers and number of rows."""

import asyncio
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import growth, ledger


@pytest.mark.timeout(240)
async def test_throughput_is_measured_by_backlog_and_worker_count(tmp_path: Path) -> None:
    async with growth.open_bench_rig(tmp_path) as rig:
        assert await rig.measure_throughput(backlog=400, workers=1, counted=100) > 0
        assert await rig.measure_throughput(backlog=800, workers=2, counted=100) > 0


def test_share_is_relative_to_smallest_of_same_round() -> None:
    figures = growth.summarize({1000: [100.0, 10.0], 5000: [90.0, 9.0]}, {1: [100.0], 2: [150.0]})
    assert figures["backlog_share"] == {"1000": 1.0, "5000": 0.9}
    assert figures["actors_speedup"] == {"1": 1.0, "2": 1.5}


def test_every_query_is_timed_with_small_and_large_tables() -> None:
    figures = asyncio.run(ledger.measure(Namespace(events=60, rows=[10, 100])))
    assert figures["events_per_second"] > 0 < figures["events_kept_per_second"]
    assert set(figures["milliseconds"]) == {"10", "100"}
    assert set(figures["growth"]) == set(figures["milliseconds"]["10"]) == set(figures["lists"])
    for query, times in figures["lists"].items():
        assert times == {"ms_0.01k": figures["milliseconds"]["10"][query], "ms_0.1k": figures["milliseconds"]["100"][query]}
