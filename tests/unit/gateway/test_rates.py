"""A bucket of tokens, in a time of our own."""

from gateway.rates import MOST_CALLERS, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_evenly_and_never_overflows() -> None:
    clock = Clock()
    rates = Rates(10, 60, clock)
    assert [rates.take("a").retry_seconds for _ in range(11)] == [None] * 10 + [6]
    clock.now = 6
    assert [rates.take("a").retry_seconds for _ in range(2)] == [None, 6]
    clock.now = 1e9
    assert [rates.take("a").retry_seconds is None for _ in range(11)] == [True] * 10 + [False]


def test_zero_is_no_limit_and_no_header() -> None:
    rate = Rates(0, 60).take("a")
    assert (rate.headers, rate.retry_seconds) == ({}, None)


def test_the_number_of_callers_is_bounded() -> None:
    rates = Rates(1, 60, Clock())
    for caller in range(MOST_CALLERS + 50):
        rates.take(str(caller))
    assert len(rates._buckets) == MOST_CALLERS
