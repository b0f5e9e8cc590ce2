"""Keys, rate, size and concurrency limits, disconnects. The real middleware around a small application."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.datastructures import Headers

from contracts.wire import Header
from gateway.compat.legacy_route import LegacyRoute
from gateway.middleware import api_keys as keys_module
from gateway.middleware.admission import AdmissionMiddleware
from gateway.middleware.api_keys import ApiKeys, InsecureBindError
from gateway.middleware.tracing import TRACEPARENT_PATTERN, TracingMiddleware, request_trace_headers
from gateway.problems import install_error_handlers
from gateway.settings import GatewaySettings

KEY = "k" * 32


def app_of(keyless: tuple[str, ...] = (), upload_paths: tuple[str, ...] = (), **values: Any) -> FastAPI:
    settings = GatewaySettings.model_validate(values)
    app = FastAPI()
    app.state.started, app.state.ended = asyncio.Event(), asyncio.Event()

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, Any]:
        return {"bytes": len(await request.body()), "caller": request.scope["state"]["caller"]}

    @app.get("/asyncapi")
    @app.get("/slow")
    async def slow() -> None:
        app.state.started.set()
        try:
            await asyncio.sleep(30)
        finally:
            app.state.ended.set()

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("secret")

    install_error_handlers(app)
    keys = ApiKeys(settings, keyless)
    app.add_middleware(AdmissionMiddleware, settings=settings, keys=keys, keyless=keyless, upload_paths=upload_paths)
    app.add_middleware(TracingMiddleware)
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


@pytest.mark.parametrize(
    ("headers", "status", "caller"),
    [
        ({"Authorization": f"Bearer {KEY}"}, 200, "shop"),
        ({"Authorization": f"bearer  {KEY}"}, 200, "shop"),
        ({"X-API-Key": "z" * 20}, 200, "other"),
        ({"Authorization": f"Bearer {KEY}x"}, 401, None),
        ({"Authorization": f"Basic {KEY}"}, 401, None),
        ({"X-API-Key": ""}, 401, None),
        ({}, 401, None),
    ],
)
async def test_only_known_api_key_is_accepted(headers: dict[str, str], status: int, caller: str | None) -> None:
    async with client_of(app_of(api_keys=f"shop:{KEY}, other:{'z' * 20}")) as http:
        response = await http.post("/echo", headers=headers)
    assert response.status_code == status
    assert response.json().get("caller") == caller
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/echo", "/none"])
async def test_requests_without_valid_key_are_limited_by_address(path: str) -> None:
    """The valid key of the same address is accepted all the same, and another address has a limit of its own."""
    app = app_of(api_keys=f"shop:{KEY}", failed_keys=3)
    async with client_of(app) as http:
        refused = [await http.post(path, headers={"X-API-Key": f"{number}" * 20}) for number in range(4)]
        without = await http.post(path)
        valid = await http.post("/echo", headers={"X-API-Key": KEY})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("192.0.2.9", 1)), base_url="http://localhost") as other:
        elsewhere = await other.post(path)
    assert [response.status_code for response in (*refused, without, valid, elsewhere)] == [401, 401, 401, 429, 429, 200, 401]
    assert 1 <= int(without.headers["retry-after"]) <= 20
    assert without.headers["content-type"] == "application/problem+json"


async def test_addresses_of_one_ipv6_network_share_a_limit() -> None:
    app, statuses = app_of(api_keys=f"shop:{KEY}", failed_keys=2), []
    for number in range(4):
        transport = httpx.ASGITransport(app, client=(f"2001:db8:1:2:{number}::1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            statuses.append((await http.post("/echo")).status_code)
    assert statuses == [401, 401, 429, 429]


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"api_keys": f"shop:{KEY}"}])
async def test_public_path_prefix_does_not_open_other_paths(settings: dict[str, str]) -> None:
    """As on Vertex AI, which sends no key. Without any key, all other paths are refused."""
    async with client_of(app_of(("/echo",), **settings)) as http:
        assert (await http.post("/echo", content=b"abc")).json() == {"bytes": 3, "caller": None}
        for path in ("/slow", "/echo/", "//echo", "/echo/../slow"):
            assert (await http.get(path)).status_code == 401, path


def test_server_without_keys_rejects_remote_bind() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert not ApiKeys(GatewaySettings(host=host)).needed
    for host in ("0.0.0.0", "::", "10.0.0.1", "gateway"):
        with pytest.raises(InsecureBindError, match="GATEWAY_API_KEYS"):
            ApiKeys(GatewaySettings(host=host))
    assert ApiKeys(GatewaySettings.model_validate({"host": "0.0.0.0", "api_keys": f"a:{KEY}"})).needed


@pytest.mark.parametrize("value", ["short:abc", "no-name", f"bad name:{KEY}", f":{KEY}"])
def test_invalid_key_is_rejected_without_echo(value: str) -> None:
    with pytest.raises(ValueError) as raised:
        ApiKeys(GatewaySettings.model_validate({"api_keys": value}))
    assert KEY not in str(raised.value)


def test_changed_key_file_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a restart; an invalid file changes nothing."""
    monkeypatch.setattr(keys_module, "RELOAD_CHECK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(f"# the shop\nshop:{KEY}\n")
    keys = ApiKeys(GatewaySettings(api_keys_file=file))
    assert (keys.name_of(KEY), keys.name_of("n" * 32)) == ("shop", None)
    for moment, text, expected in [(1, f"new:{'n' * 32}\n", (None, "new")), (2, "nonsense", (None, "new")), (3, "", (None, None))]:
        file.write_text(text)
        os.utime(file, ns=(moment, moment))
        assert (keys.name_of(KEY), keys.name_of("n" * 32)) == expected
    assert keys.needed, "an empty file must not open the gateway"


async def test_rate_limit_headers_are_sent() -> None:
    """Each key has a limit of its own."""
    app = app_of(api_keys=f"shop:{KEY} other:{'z' * 20}", rate_requests=2, rate_seconds=60)
    async with client_of(app) as http:
        answers = [await http.post("/echo", headers={"X-API-Key": KEY}) for _ in range(3)]
        assert (await http.post("/echo", headers={"X-API-Key": "z" * 20})).status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["ratelimit-policy"] for answer in answers] == ['"default";q=2;w=60'] * 3
    assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=1", "r=0", "r=0"]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30


async def test_large_body_is_rejected_before_it_is_read() -> None:
    """By its Content-Length; without one, while it is received."""
    chunks_read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal chunks_read
        for _ in range(1000):
            chunks_read += 1
            yield b"x" * 100

    async with client_of(app_of(max_body_bytes=1000)) as http:
        assert (await http.post("/echo", content=b"x" * 1000)).json()["bytes"] == 1000
        with_content_length = await http.post("/echo", content=b"x" * 1001)
        without_content_length = await http.post("/echo", content=chunks())
    assert (with_content_length.status_code, without_content_length.status_code) == (413, 413)
    assert with_content_length.headers["content-type"] == without_content_length.headers["content-type"] == "application/problem+json"
    assert chunks_read < 20


async def test_upload_route_allows_larger_body_with_content_length() -> None:
    """Large bodies are limited in number; small ones always pass."""
    app = app_of(upload_paths=("/echo", "/slow"), max_body_bytes=1000, max_upload_bytes=3000, max_uploads=1)
    async with client_of(app) as http:
        statuses = [(await http.post("/echo", content=b"x" * size)).status_code for size in (1001, 9000, 9001)]
        first = asyncio.create_task(http.request("GET", "/slow", content=b"x" * 1001))
        await app.state.started.wait()
        second, small = await http.post("/echo", content=b"x" * 1001), await http.post("/echo", content=b"x")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert statuses == [200, 200, 413]
    assert (second.status_code, small.status_code) == (503, 200)


async def test_request_over_concurrency_limit_returns_retry_after() -> None:
    app = app_of(max_requests=1)
    async with client_of(app) as http:
        first = asyncio.create_task(http.get("/slow"))
        await app.state.started.wait()
        rejected = await http.post("/echo")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "1")


async def test_concurrency_is_limited_per_tenant() -> None:
    """Over all of its keys, until its first request is answered."""
    app = app_of(api_keys=f"shop:{KEY} shop:{'y' * 20} other:{'z' * 20}", tenant_requests=1)
    async with client_of(app) as http:
        first = asyncio.create_task(http.get("/slow", headers={"X-API-Key": KEY}))
        await app.state.started.wait()
        rejected = await http.post("/echo", headers={"X-API-Key": "y" * 20})
        of_other_tenant = await http.post("/echo", headers={"X-API-Key": "z" * 20})
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        again = await http.post("/echo", headers={"X-API-Key": KEY})
    assert (rejected.status_code, of_other_tenant.status_code, again.status_code) == (429, 200, 200)
    assert rejected.headers["content-type"] == "application/problem+json"
    assert (rejected.headers["retry-after"], rejected.headers["ratelimit"]) == ("1", '"at-once";r=0;t=1')
    assert rejected.headers["ratelimit-policy"] == '"at-once";q=1;qu="concurrent-requests"'


async def test_two_keys_of_one_tenant_have_one_rate() -> None:
    app = app_of(api_keys=f"shop:{KEY} shop:{'y' * 20}", rate_requests=2)
    async with client_of(app) as http:
        answers = [await http.post("/echo", headers={"X-API-Key": key}) for key in (KEY, "y" * 20, KEY)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


async def test_client_disconnect_cancels_request() -> None:
    app, disconnected = app_of(), asyncio.Event()
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/slow",
        "raw_path": b"/slow",
        "query_string": b"",
        "headers": [],
        "client": ("::1", 1),
    }

    async def receive() -> dict[str, Any]:
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    serving = asyncio.create_task(app(scope, receive, send))
    await app.state.started.wait()
    disconnected.set()
    await asyncio.wait_for(serving, 5)
    assert app.state.ended.is_set()
    assert sent == []


async def test_internal_error_problem_hides_details() -> None:
    async with client_of(app_of()) as http:
        response = await http.get("/broken", headers={"X-Request-Id": "call-1"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "call-1")
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text


async def test_every_response_has_request_id_and_security_headers() -> None:
    async with client_of(app_of()) as http:
        for response in (await http.post("/echo"), await http.get("/nowhere"), await http.get("/echo")):
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert len(response.headers["x-request-id"]) == 36
    assert (response.status_code, response.headers["content-type"]) == (405, "application/problem+json")


@pytest.mark.parametrize("invalid_id", ["", "a b", "x" * 129, "ä"])
async def test_invalid_request_id_is_replaced(invalid_id: str) -> None:
    async with client_of(app_of()) as http:
        response = await http.post("/echo", headers=[(b"X-Request-Id", invalid_id.encode("latin-1"))])
    assert str(UUID(response.headers["x-request-id"])) == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "invalid_traceparent", ["", "00-xyz", f"ff-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'A' * 32}-{'b' * 16}-01"]
)
async def test_invalid_traceparent_starts_new_trace(invalid_traceparent: str) -> None:
    async with client_of(app_of()) as http:
        response = await http.post("/echo", headers={"traceparent": invalid_traceparent, "tracestate": "v=1"})
    trace = TRACEPARENT_PATTERN.fullmatch(response.headers["traceparent"])
    assert trace is not None
    assert trace[1] not in {"a" * 32, "0" * 32}, "a new trace id"
    assert Header.TRACESTATE not in request_trace_headers(Headers({"traceparent": invalid_traceparent, "tracestate": "v=1"}))


async def test_valid_traceparent_is_continued() -> None:
    """With a span id of its own, and the client's tracestate."""
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "v=1"}
    trace_headers = request_trace_headers(Headers(headers))
    assert trace_headers[Header.TRACEPARENT].startswith(f"00-{'a' * 32}-")
    assert trace_headers[Header.TRACEPARENT] != headers["traceparent"]
    assert trace_headers[Header.TRACESTATE] == "v=1"


async def test_errors_below_a_prefix_have_its_error_format() -> None:
    """Also those that are raised before routing."""
    app = app_of(api_keys=f"a:{KEY}")
    app.state.error_formats = (("/api/yh", LegacyRoute.error_format),)
    async with client_of(app) as http:
        refused = await http.get("/api/yh/none")
        unknown = await http.get("/api/yh/none", headers={"X-API-Key": KEY})
        other = await http.get("/api/yhx", headers={"X-API-Key": KEY})
    assert (refused.status_code, unknown.status_code, unknown.json()) == (401, 404, {"detail": "Not Found"})
    assert list(refused.json()) == ["detail"]
    assert other.headers["content-type"] == "application/problem+json"
