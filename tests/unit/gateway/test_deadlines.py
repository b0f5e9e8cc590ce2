"""The durations that a client sends, in every accepted spelling."""

import pytest

from gateway.deadlines import request_timeout, requested_wait
from gateway.problems import HttpProblem
from gateway.settings import GatewaySettings

SETTINGS = GatewaySettings(request_seconds=9, longest_seconds=100, longest_wait_seconds=50)


@pytest.mark.parametrize(
    ("value", "default", "seconds"), [(None, None, 9), (None, 12, 12), ("30", None, 30), ("2.5", 12, 2.5), ("1e9", None, 100)]
)
def test_timeout_header_is_parsed_in_seconds(value: str | None, default: float | None, seconds: float) -> None:
    assert request_timeout({"x-request-timeout": value} if value else {}, SETTINGS, default) == seconds


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_invalid_timeout_is_rejected(value: str) -> None:
    with pytest.raises(HttpProblem) as raised:
        request_timeout({"x-request-timeout": value}, SETTINGS)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("wait", "prefer", "seconds"),
    [
        (None, None, 0),
        (5, None, 5),
        (5, "wait=9", 5),
        (0, "wait=9", 0),
        (1000, None, 50),
        (None, "wait=9", 9),
        (None, "respond-async, wait=9", 9),
        (None, 'respond-async; WAIT = "9"', 9),
        (None, "await=9", 0),
        (None, "wait=soon", 0),
    ],
)
def test_wait_is_read_from_query_or_header(wait: float | None, prefer: str | None, seconds: float) -> None:
    assert requested_wait({"prefer": prefer} if prefer else {}, SETTINGS, wait) == seconds
