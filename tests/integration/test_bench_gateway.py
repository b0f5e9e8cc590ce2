"""The gateway benchmark, small: every client has a reply, the waiting ones too, and the figures add up."""

import asyncio
from argparse import Namespace
from typing import Any

import pytest

from benchmarks import gateway
from benchmarks.gateway import SIDES, MeasuredRound
from benchmarks.request_processes import LoadRound, run_once


def test_every_client_receives_reply() -> None:
    figures = asyncio.run(gateway.measure(Namespace(seconds=0.2, rounds=2, callers=[2], waiting=4)))
    assert set(figures["sides"]) == set(SIDES)
    assert all(side["2"]["least"] > 0 for side in figures["sides"].values())
    assert all(set(side["2"]["cpu_us"]) == {"client", "gateway", "responder", "broker"} for side in figures["sides"].values())
    assert 0 <= figures["gateway_share_of_cpu"]["2"] < 1
    assert figures["waiting"]["replied"] == 4
    assert figures["waiting"]["seconds"] >= 2


async def test_failure_of_a_request_is_reported_by_its_type_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Its text may have the password of the broker, and this process has nothing of the bus that masks it."""

    async def fail(step: str, body: dict[str, Any]) -> None:
        raise ConnectionError("amqp://guest:secret@broker")

    assert (await run_once([fail], "job.get", {}, within=5.0)).request_seconds == []
    assert capsys.readouterr().err == "1 requests failed, the first with ConnectionError\n"


def rounds(*rates: int) -> list[MeasuredRound]:
    """Each second, a request took 100 µs of its client's processor time and 300 of the gateway's."""
    return [MeasuredRound(LoadRound(1.0, [1 / rate] * rate, rate * 100e-6), {"gateway": rate * 300e-6}) for rate in rates]


def test_share_is_median_of_round_ratios() -> None:
    """A slow moment of the machine affects all sides, and so not their ratio."""
    sides = {"aio_pika": rounds(100, 10, 100), "bus": rounds(90, 9, 80), "http": rounds(50, 5, 50), "faststream_request": rounds(25, 5, 25)}
    figures = gateway.summarize({64: sides})
    assert figures["bus_share_of_aio_pika"] == {"64": 0.9}
    assert figures["http_share_of_aio_pika"] == {"64": 0.5}
    assert figures["over_faststream_request"] == {"64": 2.0}
    times = {"p50_ms": 20.0, "p99_ms": 200.0, "cpu_us": {"client": 100, "gateway": 300}}
    assert figures["sides"]["http"]["64"] == {"per_second": 50.0, "least": 5.0, "most": 50.0, **times}
    assert figures["bus_over_faststream_request"] == {"64": 3.2}
    assert figures["gateway_share_of_cpu"] == {"64": 0.75}
