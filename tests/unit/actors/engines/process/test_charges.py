"""What the executor charges for the reports of its process."""

import time

import pytest

from actors.engines.process.charges import MAX_ENDED_REQUESTS, ChargedRequests, RequestCharge


def test_a_long_request_is_charged_beside_many_short_ones() -> None:
    charged, long = ChargedRequests(), RequestCharge()
    charged.submit(1, long)
    for request_id in range(2, 3 * MAX_ENDED_REQUESTS):
        charged.submit(request_id, short := RequestCharge())
        charged.report({1: 0.25, request_id: 0.5})
        charged.end(request_id)
        assert short.device_seconds == 0.5
    assert long.device_seconds == pytest.approx(0.25 * (3 * MAX_ENDED_REQUESTS - 2))
    assert len(charged._ended) == MAX_ENDED_REQUESTS


def test_work_after_the_end_of_a_request_is_its_own() -> None:
    charged, cancelled = ChargedRequests(), RequestCharge()
    charged.submit(1, cancelled)
    charged.end(1)
    charged.report({1: 2.0})
    assert cancelled.device_seconds == 2.0


def test_time_before_an_exit_is_that_of_the_running_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of ended ones, and of none while the process was idle."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    charged, first, second, ended = ChargedRequests(), RequestCharge(), RequestCharge(), RequestCharge()
    now += 50
    charged.submit(1, first)
    charged.submit(2, second)
    charged.submit(3, ended)
    charged.end(3)
    now += 4
    assert charged.end_process() == pytest.approx(4)
    assert (first.device_seconds, second.device_seconds, ended.device_seconds) == pytest.approx((2, 2, 0))
    now += 8
    assert charged.end_process() == 0
