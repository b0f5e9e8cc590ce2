"""The bench of a burst in small: nothing is dropped, and what waits does not wait in the actor."""

import pytest

from benchmarks import burst


@pytest.mark.timeout(180)
async def test_burst_completes_all_orders_with_bounded_memory() -> None:
    told = await burst.measure(3_000)
    assert told["dropped"] == 0
    assert told["published_per_second"] > told["done_per_second"], "it is no burst if the actor keeps up"
    actor = told["memory"]["actor"]
    assert actor["most_mb"] < actor["first_mb"] + 30
