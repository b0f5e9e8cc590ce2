"""The bench of HTTP, small: both sides answer, and the watch on `/health` sees a server that is held up."""

import asyncio
import time
from argparse import Namespace

import pytest
from fastapi import FastAPI

from ops.bench import http
from ops.bench.http import Times
from tests.integration.live import served


@pytest.mark.models
@pytest.mark.timeout(240)
def test_both_sides_answer_every_client() -> None:
    said = {"clients": [2], "questions": 4, "tokens": 4, "rounds": 1, "models": None, "json": True}
    told = asyncio.run(http.measured(Namespace(**said)))
    assert set(told["clients"]["2"]) == {"gateway", "inline"}
    assert all(seen["per_second"] > 0 < seen["health_worst_ms"] for seen in told["clients"]["2"].values())
    assert told["over_inline"]["2"] > 0


async def test_a_server_that_works_on_its_event_loop_is_seen_by_its_health() -> None:
    app = FastAPI()

    @app.post("/predict")
    async def predict() -> dict[str, list[str]]:
        time.sleep(0.3)  # noqa: ASYNC251 # the fault that the bench shows
        return {"predictions": ["x"]}

    @app.get("/health")
    async def health() -> None: ...

    async with served(app) as url:
        times = await http.asked(http.port_in(url), clients=1, questions=2)
    assert max(times.health) > 0.2


def test_the_ratio_is_taken_round_by_round() -> None:
    fast, slow = Times([0.1], [0.01], 1.0), Times([0.1], [0.5], 2.0)
    told = http.figures({8: {"gateway": [fast, fast], "inline": [slow, slow]}})
    assert told["over_inline"] == {"8": 2.0}
    assert told["clients"]["8"]["inline"]["health_worst_ms"] == 500
