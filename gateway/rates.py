"""How often one caller may ask: a bucket of tokens each, in this process. Two gateways give a caller twice as much.

Headers as in draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` says the rule, `RateLimit` what is left of it.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_CALLERS = 10_000


@dataclass
class Bucket:
    tokens: float
    at: float


@dataclass(frozen=True)
class Rate:
    """What a caller is told. `retry_seconds`: None when the request may pass."""

    headers: dict[str, str]
    retry_seconds: int | None


class Rates:
    """Full at first; refilled evenly; the caller unseen for longest is forgotten first."""

    def __init__(self, requests: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = requests, seconds, clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, caller: str) -> Rate:
        """Take one token, if there is one."""
        if not self._most:
            return Rate({}, None)
        bucket = self._filled(caller)
        passes = bucket.tokens >= 1
        bucket.tokens -= passes
        wait = None if passes else max(1, math.ceil((1 - bucket.tokens) * self._seconds / self._most))
        return Rate(self._headers(bucket), wait)

    def _filled(self, caller: str) -> Bucket:
        now = self._clock()
        bucket = self._buckets.pop(caller, None) or Bucket(self._most, now)
        bucket.tokens = min(self._most, bucket.tokens + (now - bucket.at) * self._most / self._seconds)
        bucket.at = now
        self._buckets[caller] = bucket
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        return bucket

    def _headers(self, bucket: Bucket) -> dict[str, str]:
        full_in = math.ceil((self._most - bucket.tokens) * self._seconds / self._most)
        return {
            "RateLimit-Policy": f'"default";q={self._most};w={math.ceil(self._seconds)}',
            "RateLimit": f'"default";r={math.floor(bucket.tokens)};t={full_in}',
        }
