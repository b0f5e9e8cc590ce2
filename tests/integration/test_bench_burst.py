"""The burst benchmark, small: nothing is dropped, and the backlog does not wait in the actor."""

import pytest

from benchmarks import burst


@pytest.mark.timeout(180)
async def test_burst_completes_all_orders_with_bounded_memory() -> None:
    figures = await burst.measure(3_000)
    assert figures["dropped"] == 0
    assert figures["published_per_second"] > figures["done_per_second"], "a burst is faster than the actor"
    actor = figures["memory"]["actor"]
    assert actor["most_mb"] < actor["first_mb"] + 30
