"""The benches of growth and of the ledger, small: they end, and their figures are of what was asked."""

import asyncio
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import growth, ledger


@pytest.mark.timeout(240)
async def test_throughput_is_measured_by_backlog_and_worker_count(tmp_path: Path) -> None:
    async with growth.open_bench_rig(tmp_path) as yard:
        assert await yard.measure_throughput(backlog=400, workers=1, counted=100) > 0
        assert await yard.measure_throughput(backlog=800, workers=2, counted=100) > 0


def test_share_is_relative_to_smallest_of_same_round() -> None:
    told = growth.summarize({1000: [100.0, 10.0], 5000: [90.0, 9.0]}, {1: [100.0], 2: [150.0]})
    assert told["backlog_share"] == {"1000": 1.0, "5000": 0.9}
    assert told["actors_speedup"] == {"1": 1.0, "2": 1.5}


def test_every_query_is_timed_with_small_and_large_tables() -> None:
    told = asyncio.run(ledger.measure(Namespace(events=60, rows=[10, 100])))
    assert told["events_kept_per_second"] > 0
    assert set(told["milliseconds"]) == {"10", "100"}
    assert set(told["growth"]) == set(told["milliseconds"]["10"])
