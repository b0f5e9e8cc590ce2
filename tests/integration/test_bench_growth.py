"""The benches of growth and of the ledger, small: they end, and their figures are of what was asked."""

import asyncio
from argparse import Namespace
from pathlib import Path

import pytest

from ops.bench import growth, ledger


@pytest.mark.timeout(240)
async def test_messages_are_timed_with_few_and_many_waiting_and_by_two_workers(tmp_path: Path) -> None:
    async with growth.open_yard(tmp_path) as yard:
        assert await yard.drain(waiting=400, workers=1, counted=100) > 0
        assert await yard.drain(waiting=800, workers=2, counted=100) > 0


def test_a_share_is_against_the_smallest_of_the_same_round() -> None:
    told = growth.figures({1000: [100.0, 10.0], 5000: [90.0, 9.0]}, {1: [100.0], 2: [150.0]})
    assert told["backlog_share"] == {"1000": 1.0, "5000": 0.9}
    assert told["actors_speedup"] == {"1": 1.0, "2": 1.5}


def test_every_question_is_timed_with_few_rows_and_many() -> None:
    told = asyncio.run(ledger.measured(Namespace(events=60, rows=[10, 100])))
    assert told["events_kept_per_second"] > 0
    assert set(told["milliseconds"]) == {"10", "100"}
    assert set(told["growth"]) == set(told["milliseconds"]["10"])
