"""The HTTP benchmark, small: both servers answer, and the poll of `/health` detects a blocked one."""

import asyncio
import time
from argparse import Namespace

import pytest
from fastapi import FastAPI

from benchmarks import http
from benchmarks.http import RoundTimes
from benchmarks.processes import parse_port
from tests.support.live_gateway import serve_app


@pytest.mark.models
@pytest.mark.timeout(240)
def test_both_servers_answer_every_client() -> None:
    arguments = Namespace(clients=[2], questions=4, tokens=4, rounds=1, models=None, json=True)
    figures = asyncio.run(http.measure(arguments))
    assert set(figures["clients"]["2"]) == {"gateway", "inline"}
    assert all(side["per_second"] > 0 < side["health_worst_ms"] for side in figures["clients"]["2"].values())
    assert figures["over_inline"]["2"] > 0


async def test_blocked_event_loop_shows_in_health_latency() -> None:
    app = FastAPI()

    @app.post("/predict")
    async def predict() -> dict[str, list[str]]:
        time.sleep(0.3)  # noqa: ASYNC251 # the fault that the benchmark detects
        return {"predictions": ["x"]}

    @app.get("/health")
    async def health() -> None: ...

    async with serve_app(app) as url:
        times = await http.run_clients(parse_port(url), clients=1, requests=2)
    assert max(times.health_seconds) > 0.2


def test_ratio_is_median_of_round_ratios() -> None:
    fast, slow = RoundTimes([0.1], [0.01], 1.0), RoundTimes([0.1], [0.5], 2.0)
    figures = http.summarize({8: {"gateway": [fast, fast], "inline": [slow, slow]}})
    assert figures["over_inline"] == {"8": 2.0}
    assert figures["clients"]["8"]["inline"]["health_worst_ms"] == 500
