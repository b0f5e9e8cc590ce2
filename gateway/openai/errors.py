"""OpenAI's error format, for every path under `/v1`, with the statuses by which its clients decide whether to retry."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from contracts.fault import Fault
from contracts.wire import Step
from gateway.json_body import JsonRoute
from gateway.problems import RETRY_AFTER, FormattedRoute, HttpProblem, describe_validation_error
from gateway.strict_model import HttpModel
from gateway.text.client import INVALID_TEXT_REQUEST_CODES, UNAVAILABLE_CODES, UNSUPPORTED_CODES

STATUS_BY_FAULT_CODE = (
    {"model-unknown": 404, "cancelled": 409, "document-too-large": 413, "moderation-unconfigured": 501, "embeddings-unconfigured": 501}
    | dict.fromkeys(UNSUPPORTED_CODES, 501)
    | dict.fromkeys(UNAVAILABLE_CODES, 503)
)
"""Faults of the server, and faults with a status of their own."""
INVALID_REQUEST_CODES = INVALID_TEXT_REQUEST_CODES | frozenset({
    *("lora-invalid", "scheduler-unsupported", "size-unsupported", "edit-unsupported", "control-unknown"),
    *("dimensions-unsupported", "too-many-numbers"),
    *("control-unfit", "strength-too-low", "mask-size-differs", "mask-empty", "image-too-costly"),
})  # fmt: skip
"""Faults of the request: a 400, which no client retries."""
PARAMETERS = {
    "model-unknown": "model",
    "size-unsupported": "size",
    "scheduler-unsupported": "scheduler",
    "control-unknown": "control",
    "control-unfit": "control",
    "strength-too-low": "strength",
    "mask-size-differs": "mask",
    "mask-empty": "mask",
}
"""The field of the request that a fault is about."""
IMAGE_PARAMETERS = PARAMETERS | dict.fromkeys(("lora-unknown", "lora-invalid", "lora-missing"), "loras") | {"prompt-too-long": "prompt"}
"""The same for a fault of the image step: a text request has neither field."""
TEXT_PARAMETERS = (
    PARAMETERS
    | dict.fromkeys(("lora-unknown", "lora-missing"), "model")
    | {
        "tools-refused": "tools",
        "tool-call-missing": "tool_choice",
    }
)
"""The same for a fault of the text step, whose adapter is a model here."""
EMBED_PARAMETERS = PARAMETERS | {"dimensions-unsupported": "dimensions", "prompt-too-long": "input", "too-many-numbers": "input"}
"""The same for a fault of the embed step."""
CODES_WITH_A_FIELD = frozenset({"parameter-unsupported", "invalid-message"})
"""Faults whose message names a field of the command."""
FIELDS_OF_COMMANDS = {
    "json_schema": "response_format",
    "json_only": "response_format",
    "lora_adapter": "model",
    "raw_prompt": "prompt",
    "tool_name": "tool_choice",
    "with_logprobs": "logprobs",
} | {
    name: name
    for name in (
        *(
            "messages",
            "prompt",
            "max_tokens",
            "temperature",
            "top_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "stop",
        ),
        *("seed", "tools", "tool_choice", "parallel_tool_calls", "n", "logprobs", "top_logprobs", "reasoning_effort"),
    )
}
"""The fields of the text step's command, and those of a request from which they come. A message names them with what lies in them, such
as `messages[3].tool_call_id`."""
NO_RETRY = {"X-Should-Retry": "false"}
"""OpenAI's clients repeat a request at every status from 500, unless this header says that it would fail again."""
OPENAI_CODES = {
    "prompt-too-long": "context_length_exceeded",
    "model-unknown": "model_not_found",
    "content-filtered": "content_filter",
}
"""Fault codes that OpenAI's clients know by another name."""
PLAIN_TYPES = frozenset({"str", "int", "float", "bool", "none"})


class ErrorBody(HttpModel):
    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = None
    code: str | None = None


class ErrorResponse(HttpModel):
    """An error in OpenAI's format."""

    error: ErrorBody


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 429, 500, 501, 503, 504)
}


def to_openai_problem(error: RequestValidationError | ReplyFault | ReplyTimeout) -> HttpProblem:
    match error:
        case RequestValidationError():
            param = ".".join(map(str, most_exact_location(error))) or None
            return HttpProblem(400, "invalid-request", describe_validation_error(error), param=param)
        case ReplyFault(fault=fault):
            status = 400 if fault.code in INVALID_REQUEST_CODES else STATUS_BY_FAULT_CODE.get(fault.code, 500)
            headers = {501: NO_RETRY, 503: RETRY_AFTER}.get(status)
            return HttpProblem(status, fault.code, fault.message, headers, param=parameter_of(fault))
        case ReplyTimeout():
            return HttpProblem(504, "no-reply-in-time", str(error), RETRY_AFTER)


def parameter_of(fault: Fault) -> str | None:
    """The field of the request that a fault is about; None when it is not known."""
    if fault.code in CODES_WITH_A_FIELD:
        words = [re.split(r"[.\[]", word)[0] for word in fault.message.replace(",", " ").replace(":", " ").split()]
        return next((FIELDS_OF_COMMANDS[word] for word in words if word in FIELDS_OF_COMMANDS), None)
    parameters: dict[str, dict[str, str]] = {Step.IMAGE: IMAGE_PARAMETERS, Step.TEXT: TEXT_PARAMETERS, "embed": EMBED_PARAMETERS}
    return parameters.get(fault.step, PARAMETERS).get(fault.code)


def most_exact_location(error: RequestValidationError) -> list[str | int]:
    """The place of the error that lies deepest, without the names of the types and models that were tried there."""
    location = max((entry["loc"][1:] for entry in error.errors()), key=len)
    return [part for part in location if isinstance(part, int) or not is_type_name(part)]


def is_type_name(part: str) -> bool:
    return part in PLAIN_TYPES or "[" in part or part.startswith("constrained-") or part[:1].isupper()


def openai_error(problem: HttpProblem) -> dict[str, Any]:
    error = ErrorBody(
        message=problem.detail, type=error_type(problem.status), param=problem.extensions.get("param"), code=error_code(problem)
    )
    return {"error": error.model_dump()}


def error_type(status: int) -> str:
    match status:
        case 429:
            return "rate_limit_error"
        case 403:
            return "permission_error"
        case _:
            return "server_error" if status >= 500 else "invalid_request_error"


def error_code(problem: HttpProblem) -> str:
    """The problem's title in snake case, or OpenAI's own name for it."""
    if problem.status == 401:
        return "invalid_api_key"
    return OPENAI_CODES.get(problem.title, problem.title.lower().replace("-", "_").replace(" ", "_"))


class OpenAIRoute(JsonRoute, FormattedRoute):
    """An invalid request is a 400 that names the field."""

    @staticmethod
    def error_format(problem: HttpProblem) -> dict[str, Any]:
        return openai_error(problem)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_raise(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, ReplyFault, ReplyTimeout) as error:
                raise to_openai_problem(error) from error

        return handle_or_raise
