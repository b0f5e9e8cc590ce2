"""The rate limiter: token buckets, with a clock that the test sets."""

from gateway.middleware.rate_limit import MAX_CALLERS, RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_token_bucket_refills_evenly_up_to_capacity() -> None:
    clock = Clock()
    rates = RateLimiter(10, 60, clock)
    assert [rates.take("a").retry_after_seconds for _ in range(11)] == [None] * 10 + [6]
    clock.now = 6
    assert [rates.take("a").retry_after_seconds for _ in range(2)] == [None, 6]
    clock.now = 1e9
    assert [rates.take("a").retry_after_seconds is None for _ in range(11)] == [True] * 10 + [False]


def test_zero_is_no_limit_and_no_header() -> None:
    rate = RateLimiter(0, 60).take("a")
    assert (rate.headers, rate.retry_after_seconds) == ({}, None)


def test_tracked_callers_are_bounded() -> None:
    rates = RateLimiter(1, 60, Clock())
    for caller in range(MAX_CALLERS + 50):
        rates.take(str(caller))
    assert len(rates._buckets) == MAX_CALLERS
