"""Requests of other sites: host names, origins and media types, on the whole application."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Route, WebSocketRoute

from bus.settings import BusSettings
from gateway.app import create_app
from gateway.compat.vertex import VertexSettings
from gateway.console.guard import ConsoleRoute
from gateway.middleware.origins import SAFE_METHODS, host_name, is_from_other_site, is_json_media_type, is_loopback_name
from gateway.settings import GatewaySettings
from tests.unit.gateway.conftest import OpenFakeGateway
from tests.unit.gateway.console.test_guard import csrf_token

KEY = "k" * 32
KEYED = {"api_keys": f"shop:{KEY}"}
NO_MODEL = {"GATEWAY_READY_SECONDS": 0.05}
"""Settings of `/predict`, for which no actor is ready: it says so soon."""


def client(host: str = "localhost", **settings: Any) -> httpx.AsyncClient:
    app = create_app(BusSettings.model_validate({"amqp_url": "amqp://x"}), GatewaySettings.model_validate(settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}")


@pytest.mark.parametrize(
    ("host", "settings", "served"),
    [
        ("localhost", {}, True),
        ("LocalHost:8080", {}, True),
        ("localhost.", {}, True),
        ("shop.localhost:8080", {}, True),
        ("127.0.0.1:8080", {}, True),
        ("127.9.9.9", {}, True),
        ("[::1]:8080", {}, True),
        ("rebound.example", {}, False),
        ("rebound.example:8080", {}, False),
        ("localhost.rebound.example", {}, False),
        ("127.0.0.1.rebound.example", {}, False),
        ("notlocalhost", {}, False),
        ("10.0.0.7", {}, False),
        ("", {}, False),
        ("media.example", {"allowed_hosts": "media.example"}, True),
        ("Media.example:8443", {"allowed_hosts": "media.example"}, True),
        ("media.example:8443", {"allowed_hosts": "media.example:443"}, False),
        ("rebound.example", {"allowed_hosts": "media.example"}, False),
        ("rebound.example", {"allowed_hosts": "*"}, True),
        ("rebound.example", KEYED, True),
        ("rebound.example", KEYED | {"allowed_hosts": "media.example"}, False),
    ],
)
async def test_only_own_hosts_are_served_without_keys(host: str, settings: dict[str, Any], served: bool) -> None:
    async with client(**settings) as http:
        response = await http.get("/asyncapi", headers={"Host": host, "X-API-Key": KEY})
        health = await http.get("/openapi.json", headers={"Host": host, "X-API-Key": KEY})
    assert {response.status_code, health.status_code} == ({200} if served else {421})
    if not served:
        assert (response.json()["title"], "GATEWAY_ALLOWED_HOSTS" in response.json()["detail"]) == ("host-unknown", True)


async def test_second_host_header_is_checked() -> None:
    async with client() as http:
        response = await http.get("/openapi.json", headers=[("Host", "localhost"), ("Host", "rebound.example")])
    assert response.status_code == 421


@pytest.mark.parametrize(
    ("headers", "other"),
    [
        ({}, False),
        ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, False),
        ({"Host": "localhost:8080", "Origin": "http://localhost:3000"}, True),
        ({"Host": "localhost:8080", "Origin": "https://evil.example"}, True),
        ({"Host": "localhost:8080", "Origin": "null"}, True),
        ({"Origin": "null"}, True),
        ({"Host": "localhost:8080", "Origin": "https://shop.example"}, False),
        ({"Host": "localhost", "Origin": "https://shop.example.evil.example"}, True),
        ({"Host": "internal", "Origin": "https://media.example", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Host": "localhost", "Sec-Fetch-Site": "none"}, False),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, True),
        ({"Host": "localhost", "Origin": "http://localhost", "Sec-Fetch-Site": "same-site"}, True),
    ],
)
def test_request_of_other_site_is_recognised(headers: dict[str, str], other: bool) -> None:
    assert is_from_other_site(Headers(headers), ("https://shop.example",)) is other


def test_host_name_has_no_port_and_loopback_names_are_known() -> None:
    hosts = {"A.b:80": "a.b", "a.b": "a.b", "[::1]:80": "[::1]", "[::1]": "[::1]", "a.b.": "a.b", "a:b": "a:b"}
    assert {host: host_name(host) for host in hosts} == hosts
    assert all(map(is_loopback_name, ("localhost", "x.localhost", "127.0.0.1", "[::1]")))
    assert not any(map(is_loopback_name, ("", "localhost.example", "xlocalhost", "128.0.0.1", "[::2]", "0x7f.1")))


def flatten(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    for route in routes:
        yield route
        yield from flatten(list(getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None) or []))


def changing_paths() -> list[tuple[str, str]]:
    """Method and path of every route of the API that may change something; the console's are its own (`test_console_checks_its_forms`)."""
    app = create_app(BusSettings.model_validate({"amqp_url": "amqp://x"}), GatewaySettings(), vertex=VertexSettings())
    routes = [route for route in flatten(list(app.routes)) if isinstance(route, Route)]
    found = [(method, route.path) for route in routes for method in (route.methods or ()) if method not in SAFE_METHODS]
    return sorted({(method, path) for method, path in found if not path.startswith("/console")})


FORM_PATHS = {"/vision", "/multimodal", "/v1/images/edits"}
CHANGING = changing_paths()


def test_every_operation_of_the_document_is_enumerated(gateway: OpenFakeGateway) -> None:
    document = gateway().app.openapi()
    operations = [(method.upper(), path, entry) for path, entries in document["paths"].items() for method, entry in entries.items()]
    with_body = {(method, path) for method, path, entry in operations if "requestBody" in entry}
    assert len(with_body) > 10
    assert with_body <= set(CHANGING)
    assert ("POST", "/predict") in CHANGING
    forms = {path for path, entry in document["paths"].items() if "multipart/form-data" in str(entry.get("post", {}).get("requestBody"))}
    assert forms == FORM_PATHS


@pytest.mark.parametrize(("method", "path"), CHANGING)
async def test_body_that_is_no_json_is_rejected(method: str, path: str) -> None:
    """A page of another site may send these media types without asking first."""
    forms = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
    async with client() as http:
        for media_type in ("text/plain", "", "text/plain;application/json", *(() if path in FORM_PATHS else forms)):
            headers = {"Content-Type": media_type} if media_type else {}
            response = await http.request(method, path, content=b'{"prompt": "x"}', headers=headers)
            assert response.status_code == 415, (media_type, response.text)
            assert "Content-Type: application/json" in response.text


@pytest.mark.parametrize(("method", "path"), CHANGING)
async def test_request_of_other_site_is_rejected_without_keys(method: str, path: str) -> None:
    async with client(cors_origins="https://shop.example") as http:
        response = await http.request(method, path, json={}, headers={"Origin": "https://evil.example"})
    assert (response.status_code, "GATEWAY_CORS_ORIGINS" in response.text) == (403, True)


@pytest.mark.parametrize("origin", ["http://localhost", "https://shop.example"])
async def test_request_of_own_or_allowed_site_is_served(gateway: OpenFakeGateway, origin: str) -> None:
    http = gateway(vertex=NO_MODEL, cors_origins="https://shop.example").http
    response = await http.post("/predict", json={"instances": []}, headers={"Origin": origin})
    assert response.json() == {"error": "Model not ready"}


@pytest.mark.parametrize("media_type", ["application/json", "APPLICATION/JSON; charset=utf-8", "application/vnd.example+json"])
async def test_json_body_is_served(gateway: OpenFakeGateway, media_type: str) -> None:
    response = await gateway(vertex=NO_MODEL).http.post("/predict", content=b'{"instances": []}', headers={"Content-Type": media_type})
    assert response.json() == {"error": "Model not ready"}


@pytest.mark.parametrize("media_type", ["text/json", "json", "application/jsonp", "application/json,text/plain", "text/x+json"])
def test_only_json_media_types_are_json(media_type: str) -> None:
    assert not is_json_media_type(media_type)


def test_console_checks_its_forms_and_no_route_is_a_websocket() -> None:
    """Both are left out by the middleware."""
    app = create_app(BusSettings.model_validate({"amqp_url": "amqp://x"}), GatewaySettings())
    routes = list(flatten(list(app.routes)))
    console = [route for route in routes if isinstance(route, Route) and route.path.startswith("/console")]
    assert len(console) > 15
    assert all(isinstance(route, ConsoleRoute) for route in console if set(route.methods or ()) - SAFE_METHODS)
    assert not any(isinstance(route, WebSocketRoute) for route in routes)


async def test_form_of_other_site_is_rejected_by_the_console(gateway: OpenFakeGateway) -> None:
    """Also with the CSRF token of the session."""
    console = gateway().http
    csrf = csrf_token(await console.get("/console/make"))
    response = await console.post("/console/choices", data={"theme": "dark", "csrf": csrf}, headers={"Origin": "https://evil.example"})
    assert (await console.post("/console/choices", data={"theme": "dark", "csrf": csrf})).status_code == 303
    assert (response.status_code, "CSRF check failed" in response.text) == (403, True)


def test_no_decision_uses_an_address_built_from_the_host_header() -> None:
    """Starlette builds `request.url` and `request.base_url` from it. Only the scheme, and links for the client itself, may use them."""
    uses = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path("gateway").rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"request\.(?:url(?!\.scheme)|base_url)\b|\burl_for\(", line) and not line.lstrip().startswith(('"""', "#"))
    ]
    assert [use for use in uses if "for the client that has sent it" not in use and "Host header" not in use] == []
