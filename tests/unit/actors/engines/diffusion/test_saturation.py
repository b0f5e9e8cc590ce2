"""Where another row stops paying: decisions from durations, with a clock that only the calls move."""

from collections.abc import Callable

import pytest

from actors.engines.diffusion.saturation import Saturation, measure_saturation


class Device:
    """A device whose calls take what `cost` says for their rows; `slow_first`: how often longer the first call of each size takes."""

    def __init__(self, cost: Callable[[int], float], *, memory_rows: int = 1000, slow_first: float = 1.0) -> None:
        self.cost, self.memory_rows, self.slow_first = cost, memory_rows, slow_first
        self.now, self.calls = 100.0, list[int]()

    def call(self, rows: int) -> None:
        if rows > self.memory_rows:
            raise MemoryError
        self.now += self.cost(rows) * (1.0 if rows in self.calls else self.slow_first)
        self.calls.append(rows)

    def measure(self, *, max_rows: int = 16, budget: float = 10.0, expected: float = 0.01, tokens: int = 1024) -> Saturation:
        return measure_saturation(self.call, tokens, max_rows, budget, expected, clock=lambda: self.now)


def full_at(rows_at_once: int, seconds: float = 0.01) -> Callable[[int], float]:
    """A call takes one unit of time for each `rows_at_once` rows that it has begun."""
    return lambda rows: seconds * -(-rows // rows_at_once)


@pytest.mark.parametrize(("rows_at_once", "limit"), [(1, 1), (2, 2), (4, 4), (8, 8), (16, None)])
def test_the_limit_is_where_a_doubling_no_longer_pays(rows_at_once: int, limit: int | None) -> None:
    device = Device(full_at(rows_at_once))
    saturation = device.measure(max_rows=16)

    assert saturation.row_limit == limit
    assert saturation.stopped_by == ("saturated" if limit else "all-measured")
    assert max(device.calls) == min(16, 2 * rows_at_once)


@pytest.mark.parametrize(("gain", "limit"), [(0.04, 1), (0.06, None)])
def test_a_gain_of_less_than_five_percent_does_not_pay(gain: float, limit: int | None) -> None:
    device = Device(lambda rows: 0.01 * rows * (1 - gain) ** (rows.bit_length() - 1))

    assert device.measure().row_limit == limit


def test_the_first_call_of_a_size_does_not_count() -> None:
    saturation = Device(full_at(4), slow_first=50.0).measure()

    assert saturation.row_limit == 4
    assert saturation.relative_costs == {1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}


def test_other_load_for_a_while_makes_no_limit() -> None:
    """All calls with two rows were slow; they are made again before the limit is believed."""
    device = Device(lambda rows: 0.05 if rows == 2 and len(device.calls) < 18 else 0.01)

    assert device.measure(max_rows=4).row_limit is None
    assert device.calls.count(2) > device.calls.count(4)


def test_measuring_stops_before_the_budget_is_exceeded_and_says_what_is_known() -> None:
    device = Device(full_at(2, seconds=1.0))
    saturation = device.measure(budget=5.0, expected=1.0)

    assert saturation.stopped_by == "time"
    assert saturation.seconds == {1: 1.0}
    assert saturation.row_limit is None
    assert device.now - 100.0 <= 5.0


def test_no_call_is_made_when_the_first_is_expected_to_exceed_the_budget() -> None:
    device = Device(full_at(1))
    saturation = device.measure(budget=10.0, expected=6.0)

    assert device.calls == []
    assert (saturation.row_limit, saturation.stopped_by) == (None, "time")
    assert saturation.describe() == {"tokens": 1024, "row_limit": None, "relative_costs": {}, "stopped_by": "time"}


def test_long_calls_are_made_twice_and_short_ones_nine_times() -> None:
    long, short = Device(full_at(1, seconds=0.5)), Device(full_at(1, seconds=0.01))
    long.measure(max_rows=1, expected=0.5)
    short.measure(max_rows=1)

    assert (len(long.calls), len(short.calls)) == (2, 9)


@pytest.mark.parametrize(("memory_rows", "limit"), [(1, 1), (3, 2), (4, 4), (0, 1)])
def test_the_rows_that_fit_into_memory_are_the_limit(memory_rows: int, limit: int) -> None:
    saturation = Device(full_at(100), memory_rows=memory_rows).measure()

    assert (saturation.row_limit, saturation.stopped_by) == (limit, "memory")


def test_an_error_that_is_not_of_memory_is_raised() -> None:
    def fail(rows: int) -> None:
        raise ValueError("the model is broken")

    with pytest.raises(ValueError, match="the model is broken"):
        measure_saturation(fail, 1024, 8, 10.0, 0.01)


@pytest.mark.parametrize(("tokens", "limit"), [(1024, 4), (256, 16), (512, 8), (2048, 2), (4096, 1), (16384, 1), (1500, 2)])
def test_the_limit_of_another_size_has_as_many_tokens_in_a_call(tokens: int, limit: int) -> None:
    assert Device(full_at(4)).measure(tokens=1024).limit_at(tokens) == limit


def test_without_a_limit_no_size_has_one() -> None:
    saturation = Device(full_at(100)).measure(max_rows=8)

    assert saturation.limit_at(64) is saturation.limit_at(10**6) is None
