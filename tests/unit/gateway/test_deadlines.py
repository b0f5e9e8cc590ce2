"""How long a client gives us, as it may say it."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.deadlines import request_timeout, requested_wait
from gateway.problems import HttpProblem
from gateway.settings import GatewaySettings


def request(**headers: str) -> Any:
    state = SimpleNamespace(settings=GatewaySettings(request_seconds=9, longest_seconds=100, longest_wait_seconds=50))
    return SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()}, app=SimpleNamespace(state=state))


@pytest.mark.parametrize(("said", "seconds"), [(None, 9), ("30", 30), ("2.5", 2.5), ("1e9", 100)])
def test_timeout_header_is_parsed_in_seconds(said: str | None, seconds: float) -> None:
    assert request_timeout(request(**({"x_request_timeout": said} if said else {}))) == seconds


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "soon", ""])
def test_invalid_timeout_is_rejected(said: str) -> None:
    with pytest.raises(HttpProblem) as refused:
        request_timeout(request(x_request_timeout=said))
    assert refused.value.status == 400


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
    assert requested_wait(request(**({"prefer": prefer} if prefer else {})), wait) == seconds
