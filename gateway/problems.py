"""Errors as problem documents (RFC 9457), and as the bodies that the clients of other APIs parse."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Scope

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError, TemporaryError
from bus.masking import mask_text
from gateway.strict_model import HttpModel

STATUS_BY_FAULT_CODE = {
    "job-unknown": 404,
    "generation-foreign": 409,
    "invalid-message": 422,
    "deadline-exceeded": 504,
    "cancelled": 409,
    "claim-missing": 404,
    "dead-letter-unknown": 404,
    "dead-letter-settled": 409,
    "dead-letter-without-target": 409,
    "selection-empty": 422,
    "selection-unknown": 422,
    "message-too-large": 413,
}
"""HTTP status by fault code. Every other fault is a 502: an upstream worker failed, not the gateway."""

RequestError = ReplyFault | ReplyTimeout | PublishError
RETRY_AFTER = {"Retry-After": "5"}
REQUEST_ERRORS = (ReplyFault, ReplyTimeout, PublishError)
"""What publishing a command and awaiting its reply may raise."""


class HttpProblem(Exception):
    """An error response: `title` is its machine-readable code, `extensions` are further members of the problem document."""

    def __init__(self, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None, **extensions: Any) -> None:
        detail = mask_text(detail)
        super().__init__(detail)
        self.status, self.title, self.detail, self.headers, self.extensions = status, title, detail, dict(headers or {}), extensions


class Problem(HttpModel):
    """A problem document (RFC 9457). `title` is machine-readable: the fault's code, if a step replied with a fault."""

    model_config = ConfigDict(extra="allow")

    type: str = Field("about:blank", examples=["about:blank"])
    title: str = Field(examples=["job-unknown"])
    status: int = Field(examples=[404])
    detail: str = Field("", examples=["no job 'x' is in the ledger"])
    job_id: str | None = Field(None, description="The job that the problem is about, if there is one.")


ErrorFormat = Callable[[HttpProblem], dict[str, Any]]
"""The JSON body of an error response."""


class FormattedRoute(APIRoute):
    """A route with an error format of its own. It also applies to errors raised before routing, and to unknown paths below the prefix."""

    @staticmethod
    def error_format(problem: HttpProblem) -> dict[str, Any]:
        raise NotImplementedError


def error_formats(routers: Iterable[APIRouter]) -> tuple[tuple[str, ErrorFormat], ...]:
    """The error format by path prefix (of the router, else of the route); the most specific prefix first."""
    routes = [(router.prefix, route) for router in routers for route in router.routes]
    formats = {prefix or route.path: route.error_format for prefix, route in routes if isinstance(route, FormattedRoute)}
    return tuple(sorted(formats.items(), key=lambda item: len(item[0]), reverse=True))


def error_response(scope: Scope, problem: HttpProblem) -> JSONResponse:
    """The response in the format of the request's path."""
    formats: tuple[tuple[str, ErrorFormat], ...] = getattr(scope["app"].state, "error_formats", ())
    format_error = next((form for prefix, form in formats if f"{scope['path']}/".startswith(f"{prefix}/")), None)
    if format_error:
        response = JSONResponse(format_error(problem), problem.status)
    else:
        response = JSONResponse(problem_document(problem), problem.status, media_type="application/problem+json")
    response.headers.update(problem.headers)
    return response


def problem_document(problem: HttpProblem) -> dict[str, Any]:
    return {"type": "about:blank", "title": problem.title, "status": problem.status, "detail": problem.detail} | problem.extensions


def to_problem(error: Exception) -> HttpProblem:
    """The error response for any exception that a request may raise."""
    match error:
        case HttpProblem():
            return error
        case ReplyFault(fault=fault, job_id=job_id):
            extensions: dict[str, Any] = {"step": fault.step} | ({"job_id": job_id} if job_id else {})
            return HttpProblem(STATUS_BY_FAULT_CODE.get(fault.code, 502), fault.code, fault.message, **extensions)
        case ReplyTimeout(job_id=job_id):
            return HttpProblem(504, "no reply in time", str(error), RETRY_AFTER, **({"job_id": job_id} if job_id else {}))
        case PublishError():
            return HttpProblem(503, "the bus is away", str(error), RETRY_AFTER)
        case TemporaryError():
            return store_unavailable(error)
        case RequestValidationError():
            return HttpProblem(422, "invalid-request", describe_validation_error(error), errors=_validation_errors(error))
        case HTTPException(status_code=status, detail=detail, headers=headers):
            return HttpProblem(status, HTTPStatus(status).phrase, str(detail), headers)
        case _:
            return HttpProblem(500, "internal error", "The request failed in the gateway. Its log has the reason under the request's id.")


def store_unavailable(error: TemporaryError) -> HttpProblem:
    """The claim store, the only dependency that raises TemporaryError in a gateway, cannot be read or written now."""
    return HttpProblem(503, "store-away", str(error), RETRY_AFTER)


def describe_validation_error(error: RequestValidationError) -> str:
    return "; ".join(f"{entry['where']}: {entry['problem']}" for entry in _validation_errors(error)[:10])


def _validation_errors(error: RequestValidationError) -> list[dict[str, str]]:
    return [{"where": ".".join(map(str, entry["loc"])), "problem": entry["msg"]} for entry in error.errors()[:50]]


def install_error_handlers(app: FastAPI, routes: Sequence[Route] = ()) -> None:
    """Answer every expected exception with an error response; OPTIONS, and a method that a path lacks, with the methods that it has."""

    async def respond(request: Request, error: Exception) -> Response:
        problem = to_problem(error)
        if problem.status == HTTPStatus.METHOD_NOT_ALLOWED:
            problem.headers["Allow"] = allowed_methods(routes, request.scope["path"])
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=problem.headers)
        return error_response(request.scope, problem)

    for kind in (HttpProblem, *REQUEST_ERRORS, TemporaryError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, respond)


def allowed_methods(routes: Sequence[Route], path: str) -> str:
    """Of all routes with this path: the framework names those of the first one only, and no HEAD."""
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for the statuses that every route may return, and for `statuses`."""
    response = {"content": {"application/problem+json": {"schema": problem_schema()}}, "description": "A problem document."}
    return dict.fromkeys((401, 403, 422, 429, 500, 502, 503, 504, *statuses), response)


@cache
def problem_schema() -> dict[str, Any]:
    return Problem.model_json_schema()
