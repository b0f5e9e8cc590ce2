"""OpenAI's form of an error, on every path under `/v1`, with the statuses by which its clients decide whether to try again."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from bus.request_reply import ReplyFault, ReplyTimeout
from gateway.problems import FORMS, Refused, in_words
from gateway.writing import AWAY, WRITINGS_OWN

PREFIX = "/v1/"
STATUS = {"model-unknown": 404, "cancelled": 409, "document-too-large": 413} | dict.fromkeys(AWAY, 503)
"""Status of each fault that is not the request's own."""
OWN = WRITINGS_OWN | {"lora-invalid", "scheduler-unknown", "size-unknown"}
"""Faults that another request would not have: a 400, which no client tries again."""
CODES = {"prompt-too-long": "context_length_exceeded", "model-unknown": "model_not_found"}
"""Codes that clients of OpenAI know by another name."""


class ErrorBody(BaseModel):
    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """What went wrong, as OpenAI says it."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (400, 401, 404, 413, 429, 500, 503, 504)}


class OpenAIRoute(APIRoute):
    """What is wrong with a request is a 400 that names the field."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, ReplyFault, ReplyTimeout) as error:
                raise said(error) from error

        return handled


def said(error: RequestValidationError | ReplyFault | ReplyTimeout) -> Refused:
    match error:
        case RequestValidationError():
            param = ".".join(map(str, error.errors()[0]["loc"][1:])) or None
            return Refused(400, "invalid-request", in_words(error), param=param)
        case ReplyFault(fault=fault):
            status = 400 if fault.code in OWN else STATUS.get(fault.code, 500)
            return Refused(status, fault.code, fault.message, {"Retry-After": "5"} if status == 503 else None)
        case ReplyTimeout():
            return Refused(504, "no-reply-in-time", str(error))


def form(refused: Refused) -> dict[str, Any]:
    error = ErrorBody(message=refused.detail, type=kind(refused.status), param=refused.more.get("param"), code=code(refused))
    return {"error": error.model_dump()}


def kind(status: int) -> str:
    match status:
        case 429:
            return "rate_limit_error"
        case 403:
            return "permission_error"
        case _:
            return "server_error" if status >= 500 else "invalid_request_error"


def code(refused: Refused) -> str:
    """In snake case, as OpenAI writes it."""
    if refused.status == 401:
        return "invalid_api_key"
    return CODES.get(refused.title, refused.title.lower().replace("-", "_").replace(" ", "_"))


FORMS[PREFIX] = form
