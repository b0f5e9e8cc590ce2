"""The faults of responses, as errors of OpenAI's API."""

from dataclasses import dataclass

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError
from gateway.openai.errors import NO_RETRY, to_openai_problem
from gateway.problems import RETRY_AFTER, HttpProblem, RequestError


@dataclass(frozen=True)
class KnownFault:
    """`code` and `param`: those of OpenAI."""

    status: int
    code: str
    param: str | None = None


DATABASE_AWAY = "database-away"
KNOWN_FAULTS = {
    "response-unknown": KnownFault(404, "response-not-found", "response_id"),
    "previous-response-unknown": KnownFault(400, "previous-response-not-found", "previous_response_id"),
    "previous-response-unfinished": KnownFault(400, "previous-response-unfinished", "previous_response_id"),
    "item-unknown": KnownFault(400, "item-not-found", "input"),
    "item-repeated": KnownFault(400, "invalid-request", "input"),
    "call-unknown": KnownFault(400, "tool-call-not-found", "input"),
    "conversation-too-long": KnownFault(400, "context-length-exceeded", "input"),
    "response-not-background": KnownFault(400, "invalid-request", "response_id"),
    "answer-changed": KnownFault(503, "answer-changed"),
    "database-missing": KnownFault(501, "database-missing"),
    DATABASE_AWAY: KnownFault(503, DATABASE_AWAY),
}
PARAMETERS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""What fields of a chat request are called here."""


def to_response_problem(error: RequestError) -> HttpProblem:
    """A timeout is a 503, so that clients retry; what no retry cures says so."""
    match error:
        case ReplyFault(fault=fault) if known := KNOWN_FAULTS.get(fault.code):
            headers = {501: NO_RETRY, 503: RETRY_AFTER}.get(known.status)
            return HttpProblem(known.status, known.code, fault.message, headers, param=known.param)
        case ReplyFault():
            problem = to_openai_problem(error)
            param = problem.extensions.get("param")
            return HttpProblem(problem.status, problem.title, problem.detail, problem.headers, param=PARAMETERS.get(param or "", param))
        case ReplyTimeout() | PublishError():
            return HttpProblem(503, "model-away", str(error), RETRY_AFTER)
