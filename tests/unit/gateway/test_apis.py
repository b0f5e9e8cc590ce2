"""GATEWAY_APIS: each API alone serves its own paths, and every other path is a 404."""

from collections.abc import Iterable

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.routing import Route

from gateway.apis import all_apis, query_steps, served_apis
from gateway.compat.vertex import VertexSettings
from gateway.settings import API_NAMES, GatewaySettings
from tests.unit.gateway.conftest import OpenFakeGateway

VERTEX = VertexSettings.model_validate({"health_route": "/alive"})
APIS = all_apis(VERTEX)
KEY = "k" * 32
PROBLEM = "application/problem+json"


def paths(routers: Iterable[APIRouter]) -> set[tuple[str, str]]:
    """Method and path of every route, with a value for each parameter."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {(method, route.path.replace("{", "").replace("}", "").replace(":path", "")) for route in routes for method in route.methods}


def is_unknown_path(response: httpx.Response) -> bool:
    return response.status_code == 404 and response.headers["content-type"] == PROBLEM and response.json()["title"] == "Not Found"


def test_every_api_has_a_name() -> None:
    assert tuple(APIS) == API_NAMES


@pytest.mark.parametrize("name", API_NAMES)
def test_routers_have_nothing_but_routes(name: str) -> None:
    """The application takes over their routes only: no handlers of its start and end, no middleware, no nested routers."""
    usual = APIRouter()
    for router in APIS[name].routers:
        assert router.routes
        assert [route for route in router.routes if not isinstance(route, Route)] == []
        assert (router.on_startup, router.on_shutdown, type(router.lifespan_context)) == ([], [], type(usual.lifespan_context))
        assert router.middleware_stack == router.app


@pytest.mark.parametrize("name", API_NAMES)
async def test_api_alone_serves_its_paths_only(gateway: OpenFakeGateway, name: str) -> None:
    alone = gateway(apis=name, question_seconds=0.01, vertex={"health_route": "/alive", "ready_seconds": 0.01})
    served = paths(APIS[name].routers)
    for method, path in set().union(*(paths(api.routers) for api in APIS.values())):
        response = await alone.http.request(method, path, headers={"X-Request-Timeout": "0.01"})
        assert is_unknown_path(response) is ((method, path) not in served), (method, path, response.status_code)
    assert (await alone.http.get("/health")).status_code == 200
    assert (await alone.http.get("/openapi.json")).status_code == (200 if name == "docs" else 404)


async def test_console_session_does_not_open_paths_without_console(gateway: OpenFakeGateway) -> None:
    assert (await gateway(apis="jobs", api_keys=f"shop:{KEY}").http.get("/console/jobs")).status_code == 401


async def test_uploads_are_large_only_for_served_apis(gateway: OpenFakeGateway) -> None:
    for apis, status in (("text", 422), ("jobs", 413)):
        http = gateway(apis=apis, max_body_bytes=100).http
        response = await http.post("/vision", content=b"x" * 200, headers={"Content-Type": "application/json"})
        assert response.status_code == status


async def test_vertex_paths_need_a_key_when_vertex_is_left_out(gateway: OpenFakeGateway) -> None:
    without = gateway(apis="jobs", vertex={"mode": "PREDICTION"}, api_keys=f"shop:{KEY}")
    assert (await without.http.post("/predict")).status_code == 401


def test_queues_of_served_apis_are_declared() -> None:
    settings = GatewaySettings.model_validate({"apis": "jobs"})
    assert query_steps(served_apis(settings, VERTEX)) == (
        "text.status",
        "conversation.list",
        "job.get",
        "job.list",
        "job.events",
        "job.claim",
    )
    every_step = query_steps(served_apis(GatewaySettings(), VERTEX))
    assert len(every_step) == len(set(every_step))
    assert {"job.get", "dead-letter.replay", "consult.ready", "conversation.delete"} <= set(every_step)


@pytest.mark.parametrize("apis", ["jobs,graphql", "Jobs"])
def test_unknown_api_is_rejected(apis: str) -> None:
    with pytest.raises(ValidationError, match="the APIs are jobs"):
        GatewaySettings.model_validate({"apis": apis})
