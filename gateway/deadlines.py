"""How long a client gives us: `X-Request-Timeout`, `?wait=` and `Prefer: wait=`, all in seconds."""

import math
import re

from fastapi import Request

from gateway.problems import HttpProblem
from gateway.settings import GatewaySettings

PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6}(?:\.\d{1,3})?)\"?(?:$|[,;\s])", re.IGNORECASE)


def request_timeout(request: Request, default: float | None = None) -> float:
    """How long the work may take. Raises Refused(400) for what is no number of seconds."""
    settings: GatewaySettings = request.app.state.settings
    given = request.headers.get("x-request-timeout")
    if given is None:
        return default or settings.request_seconds
    seconds = _parse_seconds(given)
    if not 0 < seconds < math.inf:
        raise HttpProblem(400, "Bad Request", "X-Request-Timeout is a number of seconds above 0.")
    return min(seconds, settings.longest_seconds)


def requested_wait(request: Request, wait: float | None) -> float:
    """How long the client stays for the result; 0 when it does not. A preference that cannot be read is let be, as RFC 7240 wants it."""
    if wait is None and (preferred := PREFER_WAIT.search(request.headers.get("prefer", ""))):
        wait = float(preferred[1])
    longest: float = request.app.state.settings.longest_wait_seconds
    return min(wait or 0.0, longest)


def _parse_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
