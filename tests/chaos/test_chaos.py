"""A short chaos run; `make chaos` is the long one."""

import random
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio

from tests.chaos.environment import ChaosEnvironment, open_environment
from tests.chaos.rounds import play_round

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240), pytest.mark.flaky(reruns=0)]
"""No reruns: an order lost once is a failure."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment() -> AsyncIterator[ChaosEnvironment]:
    with TemporaryDirectory(prefix="atelier-chaos-") as folder:
        async with open_environment(Path(folder)) as opened:
            yield opened


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", ["actors-killed", "broker-killed", "database-killed", "backend-failing", "hostile-messages"])
async def test_every_confirmed_order_ends_once(environment: ChaosEnvironment, fault: str) -> None:
    """One image and one `complete`, or a dead letter and one `failed`; nothing duplicated, unexpected or left over."""
    result = await play_round(environment, fault, orders=60, per_second=12, rng=random.Random(11))
    assert result.clean, result.as_dict
    assert bool(result.hostile) == (fault == "hostile-messages")
    assert (result.confirmed, result.effects + result.dead_lettered) == (60, 60)
