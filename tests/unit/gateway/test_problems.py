"""Problem documents, and the error formats of routes."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError
from contracts.fault import Fault
from gateway.compat.legacy_route import LegacyRoute
from gateway.openai.errors import OpenAIRoute
from gateway.problems import FormattedRoute, HttpProblem, error_formats, error_response, to_problem


def fault(code: str) -> ReplyFault:
    return ReplyFault(Fault(code=code, message="no such weights", step="image"), "j-1")


INVALID = RequestValidationError([{"type": "missing", "loc": ("body", "prompt"), "msg": "Field required", "input": None}])


@pytest.mark.parametrize(
    ("error", "status", "title", "extensions"),
    [
        (HttpProblem(418, "teapot", "short"), 418, "teapot", {}),
        (fault("job-unknown"), 404, "job-unknown", {"step": "image", "job_id": "j-1"}),
        (fault("cancelled"), 409, "cancelled", {"step": "image", "job_id": "j-1"}),
        (fault("deadline-exceeded"), 504, "deadline-exceeded", {"step": "image", "job_id": "j-1"}),
        (fault("lora-missing"), 502, "lora-missing", {"step": "image", "job_id": "j-1"}),
        (ReplyTimeout("j-1", 3), 504, "no reply in time", {"job_id": "j-1"}),
        (ReplyTimeout(None, 3), 504, "no reply in time", {}),
        (PublishError("nack"), 503, "the bus is away", {}),
        (INVALID, 422, "invalid-request", {"errors": [{"where": "body.prompt", "problem": "Field required"}]}),
        (HTTPException(405), 405, "Method Not Allowed", {}),
        (KeyError("secret"), 500, "internal error", {}),
    ],
)
def test_exception_becomes_problem(error: Exception, status: int, title: str, extensions: dict[str, Any]) -> None:
    problem = to_problem(error)
    assert (problem.status, problem.title, problem.extensions) == (status, title, extensions)
    assert "secret" not in problem.detail


def test_unavailable_broker_has_retry_after() -> None:
    assert to_problem(PublishError("nack")).headers == {"Retry-After": "5"}


def router_of(route_class: type[FormattedRoute], prefix: str, path: str) -> APIRouter:
    async def answer() -> None: ...

    router = APIRouter(prefix=prefix, route_class=route_class)
    router.add_api_route(path, answer)
    return router


FORMATS = error_formats([router_of(OpenAIRoute, "/v1", "/chat"), router_of(LegacyRoute, "", "/v1/ask"), APIRouter(prefix="/jobs")])


def test_error_format_belongs_to_router_prefix_or_path() -> None:
    assert [prefix for prefix, _ in FORMATS] == ["/v1/ask", "/v1"]


@pytest.mark.parametrize(
    ("path", "media_type", "members"),
    [
        ("/v1/chat", "application/json", ["error"]),
        ("/v1/none", "application/json", ["error"]),
        ("/v1", "application/json", ["error"]),
        ("/v1/ask", "application/json", ["detail"]),
        ("/v1x", "application/problem+json", ["type", "title", "status", "detail", "job_id"]),
        ("/jobs/x", "application/problem+json", ["type", "title", "status", "detail", "job_id"]),
    ],
)
def test_error_response_has_format_of_path(path: str, media_type: str, members: list[str]) -> None:
    scope = {"path": path, "app": SimpleNamespace(state=SimpleNamespace(error_formats=FORMATS))}
    response = error_response(scope, HttpProblem(404, "job-unknown", "no such job", {"Retry-After": "1"}, job_id="j-1"))
    assert (response.status_code, response.media_type, response.headers["retry-after"]) == (404, media_type, "1")
    assert list(json.loads(bytes(response.body))) == members
