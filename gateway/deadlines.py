"""Durations that a client sends, in seconds: `X-Request-Timeout`, `?wait=` and `Prefer: wait=`."""

import math
import re
from collections.abc import Mapping

from gateway.problems import HttpProblem
from gateway.settings import GatewaySettings

PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6}(?:\.\d{1,3})?)\"?(?:$|[,;\s])", re.IGNORECASE)


def request_timeout(headers: Mapping[str, str], settings: GatewaySettings, default: float | None = None) -> float:
    """X-Request-Timeout, at most GATEWAY_LONGEST_SECONDS; else the default, else GATEWAY_REQUEST_SECONDS. Raises HttpProblem(400)."""
    value = headers.get("x-request-timeout")
    if value is None:
        return default or settings.request_seconds
    seconds = _parse_seconds(value)
    if not 0 < seconds < math.inf:
        raise HttpProblem(400, "Bad Request", "X-Request-Timeout is a number of seconds above 0.")
    return min(seconds, settings.longest_seconds)


def requested_wait(headers: Mapping[str, str], settings: GatewaySettings, wait: float | None) -> float:
    """How long the client waits for the result: `?wait`, else `Prefer: wait`, else 0. A malformed preference is ignored (RFC 7240)."""
    if wait is None and (preferred := PREFER_WAIT.search(headers.get("prefer", ""))):
        wait = float(preferred[1])
    return min(wait or 0.0, settings.longest_wait_seconds)


def _parse_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
