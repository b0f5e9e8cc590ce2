"""Errors as problem documents (RFC 9457); on the paths of a source system, in the form that its clients know."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError

STATUS_BY_FAULT_CODE = {
    "job-unknown": 404,
    "invalid-message": 422,
    "deadline-exceeded": 504,
    "cancelled": 409,
    "claim-missing": 404,
    "dead-letter-unknown": 404,
    "dead-letter-settled": 409,
    "dead-letter-without-target": 409,
    "selection-empty": 422,
    "message-too-large": 413,
}
"""HTTP status of a fault's code; every other fault is a 502: the gateway is well, what stands behind it is not."""


ErrorFormat = Callable[["HttpProblem"], dict[str, Any]]
"""The body that says a refusal."""


ERROR_FORMATS: dict[str, ErrorFormat] = {}
"""The error form of each path prefix that is not ours to decide."""


log = structlog.get_logger()


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it. `title` is for machines too: the fault's code, where a step answered with one."""

    model_config = ConfigDict(extra="allow")

    type: str = Field("about:blank", examples=["about:blank"])
    title: str = Field(examples=["job-unknown"])
    status: int = Field(examples=[404])
    detail: str = Field("", examples=["no job 'x' is in the ledger"])
    job_id: str | None = Field(None, description="The job to ask for again, where there is one.")


class HttpProblem(Exception):
    """The gateway's own no: a status, the reason, and what the client may do about it."""

    def __init__(self, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.headers, self.extensions = status, title, detail, dict(headers or {}), extensions


def problem_response(status: int, title: str, detail: str, **extensions: Any) -> JSONResponse:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail} | extensions
    return JSONResponse(body, status, media_type="application/problem+json")


def error_response(path: str, refused: HttpProblem) -> JSONResponse:
    """The answer to a request on a path, in the path's own form."""
    form = next((form for prefix, form in ERROR_FORMATS.items() if path.startswith(prefix)), None)
    if form:
        response = JSONResponse(form(refused), refused.status)
    else:
        response = problem_response(refused.status, refused.title, refused.detail, **refused.extensions)
    response.headers.update(refused.headers)
    return response


def to_problem(error: Exception) -> HttpProblem:
    """Any error that a request may meet, as a refusal."""
    match error:
        case HttpProblem():
            return error
        case ReplyFault(fault=fault, job_id=job_id):
            more: dict[str, Any] = {"step": fault.step} | ({"job_id": job_id} if job_id else {})
            return HttpProblem(STATUS_BY_FAULT_CODE.get(fault.code, 502), fault.code, fault.message, **more)
        case ReplyTimeout(job_id=job_id):
            return HttpProblem(504, "no reply in time", str(error), None, **({"job_id": job_id} if job_id else {}))
        case PublishError():
            return HttpProblem(503, "the bus is away", str(error), {"Retry-After": "5"})
        case RequestValidationError():
            return HttpProblem(422, "invalid-request", describe_validation_error(error), errors=_validation_errors(error))
        case HTTPException(status_code=status, detail=detail, headers=headers):
            return HttpProblem(status, HTTPStatus(status).phrase, str(detail), headers)
        case _:
            return HttpProblem(500, "internal error", "The gateway failed at this request. Its log tells why, under this request's id.")


def describe_validation_error(error: RequestValidationError) -> str:
    return "; ".join(f"{part['where']}: {part['problem']}" for part in _validation_errors(error)[:10])


def _validation_errors(error: RequestValidationError) -> list[dict[str, str]]:
    return [{"where": ".".join(map(str, part["loc"])), "problem": part["msg"]} for part in error.errors()[:50]]


def install_error_handlers(app: FastAPI) -> None:
    """Whatever goes wrong at or behind the gateway becomes a document."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return error_response(request.url.path, to_problem(error))

    for kind in (HttpProblem, ReplyFault, ReplyTimeout, PublishError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refuse)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    said = {"content": {"application/problem+json": {"schema": Problem.model_json_schema()}}, "description": "A problem document."}
    return dict.fromkeys((401, 403, 422, 429, 500, 502, 503, 504, *statuses), said)
