"""The bench of a burst in small: nothing is dropped, and what waits does not wait in the actor."""

import pytest

from ops.bench import burst


@pytest.mark.timeout(180)
async def test_a_burst_is_done_to_the_last_order_and_no_process_grows_with_it() -> None:
    told = await burst.measured(3_000)
    assert told["dropped"] == 0
    assert told["published_per_second"] > told["done_per_second"], "it is no burst if the actor keeps up"
    actor = told["memory"]["actor"]
    assert actor["most_mb"] < actor["first_mb"] + 30
