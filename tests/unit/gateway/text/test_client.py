"""Failures of text generation, with the statuses and texts of the CloudLLM API."""

import pytest

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError
from contracts.fault import Fault
from gateway.problems import RequestError
from gateway.text.client import ENGINE_NOT_READY, VISION_UNSUPPORTED, to_legacy_problem
from gateway.text.uploads import UNSUPPORTED_FILE_TYPE


def fault(code: str) -> ReplyFault:
    return ReplyFault(Fault(code=code, message="cause", step="text"))


@pytest.mark.parametrize(
    ("error", "status", "detail", "is_retryable"),
    [
        (fault("loading"), 503, ENGINE_NOT_READY, True),
        (fault("engine-crash"), 503, ENGINE_NOT_READY, True),
        (ReplyTimeout("j-1", 1), 503, ENGINE_NOT_READY, True),
        (PublishError("nack"), 503, ENGINE_NOT_READY, True),
        (fault("prompt-too-long"), 400, "cause", False),
        (fault("json-incomplete"), 400, "cause", False),
        (fault("parameter-unsupported"), 400, "cause", False),
        (fault("prompt-unreadable"), 400, "cause", False),
        (fault("json-unsupported"), 501, "cause", False),
        (fault("vision-unsupported"), 501, VISION_UNSUPPORTED, False),
        (fault("document-unsupported"), 400, UNSUPPORTED_FILE_TYPE, False),
        (fault("document-too-large"), 413, "cause", False),
        (fault("bug"), 500, "action: cause", False),
    ],
)
def test_failure_has_legacy_status_and_text(error: RequestError, status: int, detail: str, is_retryable: bool) -> None:
    problem = to_legacy_problem(error, "action")
    assert (problem.status, problem.detail, "Retry-After" in problem.headers) == (status, detail, is_retryable)
