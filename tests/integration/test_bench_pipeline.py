"""The bench of the pipeline, small: every side draws all its orders, and the figures are ratios of the same round."""

import asyncio
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import pipeline


@pytest.mark.models
@pytest.mark.timeout(240)
def test_every_variant_completes_its_orders(tmp_path: Path) -> None:
    said = {"orders": 3, "rounds": 1, "steps": 3, "pixels": 64, "webhook_ms": 5, "models": None, "json": True}
    told = asyncio.run(pipeline.measure(Namespace(**said)))
    assert set(told["orders_per_second"]) == set(told["device_busy"]) == {"bus", "inline", "unbussed"}
    assert min(told["orders_per_second"].values()) > 0 < min(told["device_busy"].values())


def test_share_is_median_of_round_ratios() -> None:
    rates = {"bus": [9.0, 0.9], "unbussed": [10.0, 1.0], "inline": [3.0, 0.3]}
    told = pipeline.summarize(rates, rates)
    assert (told["over_inline"], told["bus_share_of_work"]) == (3.0, 0.1)
