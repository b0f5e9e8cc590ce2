"""Rate limits: a token bucket per caller, in this process. With two gateways, a caller has twice the rate.

Headers as in draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` is the limit, `RateLimit` what remains of it.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gateway.problems import HttpProblem

MAX_CALLERS = 10_000


@dataclass
class TokenBucket:
    tokens: float
    updated_at: float


@dataclass(frozen=True)
class RateDecision:
    """`headers`: for the response. `retry_after_seconds`: None when the request is allowed."""

    headers: dict[str, str]
    retry_after_seconds: int | None


class RateLimiter:
    """Buckets start full and are refilled evenly. Above MAX_CALLERS, the bucket that was used least recently is dropped."""

    def __init__(self, requests: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._seconds, self._clock = requests, seconds, clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, caller: str) -> RateDecision:
        """Take one token from the caller's bucket, if it has one."""
        if not self._limit:
            return RateDecision({}, None)
        bucket = self._refilled_bucket(caller)
        allowed = bucket.tokens >= 1
        bucket.tokens -= allowed
        wait = None if allowed else max(1, math.ceil((1 - bucket.tokens) * self._seconds / self._limit))
        return RateDecision(self._headers(bucket), wait)

    def _refilled_bucket(self, caller: str) -> TokenBucket:
        now = self._clock()
        bucket = self._buckets.pop(caller, None) or TokenBucket(self._limit, now)
        bucket.tokens = min(self._limit, bucket.tokens + (now - bucket.updated_at) * self._limit / self._seconds)
        bucket.updated_at = now
        self._buckets[caller] = bucket
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return bucket

    def _headers(self, bucket: TokenBucket) -> dict[str, str]:
        full_in = math.ceil((self._limit - bucket.tokens) * self._seconds / self._limit)
        return {
            "RateLimit-Policy": f'"default";q={self._limit};w={math.ceil(self._seconds)}',
            "RateLimit": f'"default";r={math.floor(bucket.tokens)};t={full_in}',
        }


def count_failure(failures: RateLimiter, address: str, refusal: HttpProblem) -> HttpProblem:
    """The response to a request without a valid key: `refusal`, or a 429 when its address has made too many of them.

    A valid key is accepted all the same, so that nobody can lock out its owner from a shared address.
    """
    wait = failures.take(address).retry_after_seconds
    if wait is None:
        return refusal
    detail = f"Too many requests without a valid key came from this address. Send a valid key, or try again in {wait} s."
    return HttpProblem(429, "too many failures", detail, {"Retry-After": str(wait)})
