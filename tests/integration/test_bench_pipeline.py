"""The pipeline benchmark, small: every variant completes its orders, and the ratios are of the same round."""

import asyncio
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import pipeline


@pytest.mark.models
@pytest.mark.timeout(240)
def test_every_variant_completes_its_orders(tiny_checkpoints: Path) -> None:
    arguments = Namespace(orders=3, rounds=1, steps=3, pixels=64, webhook_ms=5, models=tiny_checkpoints, json=True)
    figures = asyncio.run(pipeline.measure(arguments))
    assert set(figures["orders_per_second"]) == set(figures["device_busy"]) == {"bus", "inline", "unbussed"}
    assert min(figures["orders_per_second"].values()) > 0 < min(figures["device_busy"].values())


def test_share_is_median_of_round_ratios() -> None:
    rates = {"bus": [9.0, 0.9], "unbussed": [10.0, 1.0], "inline": [3.0, 0.3]}
    figures = pipeline.summarize(rates, rates)
    assert (figures["over_inline"], figures["bus_share_of_work"]) == (3.0, 0.1)
