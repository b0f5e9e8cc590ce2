"""HTTP requests as clients, proxies and monitors really send them. Each case names its report."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

from bus.observability.health import Health
from bus.observability.health_server import HealthApp
from bus.observability.settings import HealthSettings
from gateway import memory_budget
from gateway.apis import all_apis
from gateway.compat.vertex import VertexSettings
from gateway.middleware.admission import SMALL_BODY_BYTES
from gateway.sse import sse_response
from tests.support.http_gateway import send_raw, serve_bounded
from tests.unit.gateway.conftest import FakeGateway

KEY = "a-key-for-the-tests-0001"
SHOP = "https://shop.example"
JSON_TYPE = {"Content-Type": "application/json"}
HEAD_LINES = b"Host: localhost\r\nContent-Type: application/json\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"


def open_gateway(**settings: Any) -> FakeGateway:
    return FakeGateway({}, None, {"question_seconds": 0.05, "longest_wait_seconds": 1} | settings, {"ready_seconds": 0.01})


def routes() -> Iterator[APIRoute]:
    for api in all_apis(VertexSettings()).values():
        yield from (route for router in api.routers for route in router.routes if isinstance(route, APIRoute))


def address_of(route: APIRoute) -> str:
    """With a value for each parameter."""
    return (
        route.path.replace("{rest:path}", "x")
        .replace("{model:path}", "text")
        .replace("{name}", "icon.svg")
        .replace("{", "")
        .replace("}", "")
    )


GET_PATHS = sorted({address_of(route) for route in routes() if "GET" in route.methods} | {"/health"})
POST_PATHS = sorted({address_of(route) for route in routes() if "POST" in route.methods})


async def test_head_is_answered_like_get_on_every_path() -> None:
    """fastapi-health #18, parbaked #564, passbolt_api #507, signaturepdf #191: monitors and load balancers probe with HEAD."""
    http = open_gateway().http
    assert len(GET_PATHS) > 30
    for path in GET_PATHS:
        get, head = [await http.request(method, path) for method in ("GET", "HEAD")]
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers.get("content-type") == get.headers.get("content-type"), path


async def test_head_of_a_stream_ends_at_once() -> None:
    """The status and the headers of the stream, and no stream: the connection serves the next request, and the slot is free again."""
    gateway = open_gateway(keepalive_seconds=0.05)
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[str]:
        try:
            while True:
                yield "data: 1\n\n"
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    async def stream(request: Request) -> StreamingResponse:
        return await sse_response(request, endless())

    gateway.app.add_api_route("/stream", stream)
    async with serve_bounded(gateway.app, lifespan=False) as port:
        answer = await send_raw(port, b"HEAD /stream HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.wait_for(closed.wait(), 5)
    heads = answer.split(b"\r\n\r\n")
    assert [head.splitlines()[0] for head in heads[:2]] == [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK"]
    assert (b"text/event-stream" in heads[0], b"data:" in answer, gateway.services.open_streams) == (True, False, 0)


@pytest.mark.parametrize("path", ["/health/live", "/health/live/", "/health/ready", "/health/startup", "/metrics"])
async def test_head_on_the_health_port_is_answered_like_get(path: str) -> None:
    """fastapi-health #18. Workers and gateways have the same server there."""
    transport = httpx.ASGITransport(HealthApp(Health(HealthSettings(port=None))))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        get, head, post = [await http.request(method, path) for method in ("GET", "HEAD", "POST")]
    assert (head.status_code, head.content, get.status_code != 404) == (get.status_code, b"", True)
    assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")


async def test_method_that_a_path_lacks_is_answered_with_those_that_it_has() -> None:
    """go-restful #436, go-odata #729: a 405 names the methods of all routes with the path, not those of the first one."""
    http = open_gateway().http
    for path in {*GET_PATHS, *POST_PATHS}:
        options, refused = await http.options(path), await http.request("PUT", path)
        methods = options.headers["allow"].split(", ")
        assert (options.status_code, refused.status_code, refused.headers["allow"]) == (204, 405, options.headers["allow"]), path
        served = {method for route in routes() if route.path_regex.match(path) for method in route.methods} or {"GET"}
        assert {*methods} - {"HEAD", "OPTIONS"} == served, path
        assert ("HEAD" in methods) == ("GET" in served), path
    assert (await http.options("/jobs")).headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_slashes_too_many_change_nothing() -> None:
    """mcp-auth-proxy #115, concretecms #12742: no redirect that loses the body. lets-proxy2 #177, aichat #767: `base_url` with a slash."""
    http = open_gateway().http
    for path in POST_PATHS:
        plain = await http.post(path, content=b"{}", headers=JSON_TYPE)
        for written in (f"{path}/", f"/{path}", f"{path}//"):
            response = await http.post(f"http://localhost{written}", content=b"{}", headers=JSON_TYPE)
            assert (response.status_code, response.headers.get("location")) == (plain.status_code, plain.headers.get("location")), written
            assert "/console" in path or response.json().keys() == plain.json().keys(), written


async def failing() -> None:
    raise RuntimeError("unexpected")


async def test_pages_can_read_refusals() -> None:
    """fastapi #775, #2693, starlette #1116, aspnetcore #2378: without the CORS headers a page learns nothing, also of a 500."""
    gateway = open_gateway(api_keys=f"shop:{KEY}", cors_origins=SHOP, rate_requests=40, max_body_bytes=1000)
    gateway.app.add_api_route("/fails", failing)
    http, key = gateway.http, {"X-API-Key": KEY, "Origin": SHOP}
    http._transport = httpx.ASGITransport(gateway.app, raise_app_exceptions=False)
    requests = {
        401: ("GET", "/jobs", {"headers": {"Origin": SHOP}}),
        404: ("GET", "/nope", {"headers": key}),
        405: ("PUT", "/jobs", {"headers": key}),
        413: ("POST", "/generate", {"headers": key | JSON_TYPE, "content": b"x" * 2000}),
        415: ("POST", "/jobs", {"headers": key, "content": b"x"}),
        422: ("POST", "/jobs", {"headers": key, "json": {}}),
        400: ("POST", "/v1/images/generations", {"headers": key, "json": {}}),
        500: ("GET", "/fails", {"headers": key}),
        504: ("GET", "/jobs", {"headers": key}),
    }
    for status, (method, path, more) in requests.items():
        response = await http.request(method, path, **more)
        assert (response.status_code, response.headers.get("access-control-allow-origin")) == (status, SHOP), path
        assert "X-Request-Id" in response.headers["access-control-expose-headers"]
        assert "x-request-id" in response.headers
    limited = [await http.get("/nope", headers=key) for _ in range(40)][-1]
    assert (limited.status_code, limited.headers["access-control-allow-origin"]) == (429, SHOP)
    preflight = {
        "Origin": SHOP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os,x-a",
    }
    preflight["Access-Control-Request-Private-Network"] = "true"
    allowed = await http.options("/v1/chat/completions", headers=preflight)
    assert (allowed.status_code, allowed.headers["access-control-allow-headers"]) == (200, "authorization,x-stainless-os,x-a")


@pytest.mark.parametrize("value", [f"bearer {KEY}", f"BEARER {KEY}", f"Bearer   {KEY} "])
async def test_scheme_of_a_key_has_any_case(value: str) -> None:
    """litellm and others: RFC 9110 compares schemes without case."""
    http = open_gateway(api_keys=f"shop:{KEY}").http
    assert (await http.get("/nope", headers={"Authorization": value})).status_code == 404


async def chunks(text: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


async def test_body_in_chunks_is_read_like_one_with_a_length() -> None:
    """node-fetch #213, #368, formidable #254, deno #20274: a picture of 2 MB without a Content-Length was a 413."""
    body = json.dumps({"message": "?", "image_data": "A" * 2_700_000}).encode()
    http = open_gateway().http
    with_length = await http.post("/vision", content=body, headers=JSON_TYPE)
    in_chunks = await http.post("/vision", content=chunks(body), headers=JSON_TYPE)
    assert (in_chunks.status_code, in_chunks.text) == (with_length.status_code, with_length.text)
    assert with_length.status_code != 413
    form = httpx.Request("POST", "http://localhost/vision", data={"message": "?"}, files={"image": ("a.jpg", b"?" * 2_700_000)})
    form_text, form_type = form.read(), {"Content-Type": form.headers["Content-Type"]}
    with_length = await http.post("/vision", content=form_text, headers=form_type)
    in_chunks = await http.post("/vision", content=chunks(form_text), headers=form_type)
    assert (in_chunks.status_code, in_chunks.text) == (with_length.status_code, with_length.text)
    assert with_length.status_code == 400, "a file of another type"
    too_large = await http.post("/vision", content=chunks(b"x" * (30 << 20), 1 << 20), headers=JSON_TYPE)
    assert (too_large.status_code, "bytes" in too_large.json()["detail"]) == (413, True)


async def test_memory_for_a_body_in_chunks_is_taken_as_it_arrives() -> None:
    """aspnetcore #37126: how long it becomes is unknown. Many that have only begun hold little; large ones are counted."""
    gateway = open_gateway()
    budget, settings = find_body_budget(gateway), gateway.services.settings
    held = []

    async def slowly() -> AsyncIterator[bytes]:
        for size in (SMALL_BODY_BYTES, 1, settings.max_body_bytes, 1):
            yield b"x" * size
            held.append(budget.held_bytes)

    await gateway.http.post("/vision", content=slowly(), headers=JSON_TYPE)
    assert held == [0, settings.max_body_bytes, settings.max_upload_body_bytes, settings.max_upload_body_bytes]
    assert budget.held_bytes == 0


@pytest.mark.parametrize("with_length", [True, False])
async def test_large_bodies_at_once_wait_for_each_other_and_are_all_read(with_length: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """aspnetcore #37126: with a part of the memory each, all of them waited for the rest, and all were a 503."""
    monkeypatch.setattr(memory_budget, "WAIT_SECONDS", 20)
    gateway = open_gateway(body_memory_bytes=64 << 20)
    budget, held = find_body_budget(gateway), []
    body = json.dumps({"image_data": "A" * (9 << 20)}).encode()

    async def slowly() -> AsyncIterator[bytes]:
        async for piece in chunks(body, 1 << 20):
            yield piece
            held.append(budget.held_bytes)
            await asyncio.sleep(0.001)

    async def post() -> int:
        length = {"Content-Length": str(len(body))} if with_length else {}
        return (await gateway.http.post("/vision", content=slowly(), headers=JSON_TYPE | length)).status_code

    assert await asyncio.gather(*(post() for _ in range(16))) == [422] * 16
    assert len(body) <= max(held) <= budget.share_bytes
    assert budget.held_bytes == 0


def find_body_budget(gateway: FakeGateway) -> Any:
    layer = gateway.app.middleware_stack = gateway.app.build_middleware_stack()
    while not hasattr(layer, "_body_memory"):
        layer = layer.__dict__.get("_app") or layer.__dict__["app"]
    return layer._body_memory


@pytest.mark.parametrize(
    ("name", "request_bytes", "status"),
    [
        (
            "uvicorn #2722, httptools #124: Java's client offers HTTP/2 with its body",
            UPGRADE + b"Content-Length: 7\r\n\r\n" + b'{"a":1}',
            422,
        ),
        ("the same in chunks", UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n7\r\n" + b'{"a":1}' + b"\r\n0\r\n\r\n", 422),
        (
            "a WebSocket is no more than a request",
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 7\r\n\r\n" + b'{"a":1}',
            422,
        ),
        ("bandit #618, webserv #40: two lengths", b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", 400),
        ("a length and chunks", b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        ("webserv #40: chunks of chunks", b"Transfer-Encoding: chunked, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        ("a coding that is not read", b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 501),
        ("a length that is no number", b"Content-Length: +7\r\n\r\n" + b'{"a":1}', 400),
        (
            "dusty #163, webserv #41: a refused client is not asked to go on",
            b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n",
            413,
        ),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
async def test_framing_of_requests(name: str, request_bytes: bytes, status: int) -> None:
    gateway = open_gateway()
    async with serve_bounded(gateway.app, lifespan=False) as port:
        answer = await send_raw(port, b"POST /jobs HTTP/1.1\r\n" + HEAD_LINES + request_bytes)
    assert int(answer.split()[1]) == status, answer
    assert b"Field required" not in answer, "the body has arrived"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_offer_of_another_protocol_keeps_the_version(version: bytes) -> None:
    """cowboy #140: nginx passes on an Upgrade in HTTP/1.0, which knows no chunks."""
    gateway = open_gateway()

    async def tell(request: Request) -> StreamingResponse:
        return StreamingResponse(iter([str(request.scope["http_version"])]))

    gateway.app.add_api_route("/tell", tell)
    async with serve_bounded(gateway.app, lifespan=False) as port:
        answer = await send_raw(
            port, b"GET /tell HTTP/" + version + b"\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (version in body, b"transfer-encoding: chunked" in head.lower()) == (True, version == b"1.1")


async def test_body_that_follows_an_offer_of_http_2_later_is_read() -> None:
    """codex-lb #1782: Ktor sends head and body in two pieces; the next request of the connection is served, too."""
    gateway = open_gateway()
    head = b"POST /jobs HTTP/1.1\r\n" + HEAD_LINES + UPGRADE + b"Content-Length: 7\r\n\r\n"
    async with serve_bounded(gateway.app, lifespan=False) as port:
        answer = await send_raw(port, head, b'{"a"', b":1}", b"GET /openapi.json/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 422")
    assert b"discriminator" in answer
    assert b"HTTP/1.1 200" in answer


async def test_response_without_a_length_ends_with_the_connection_for_http_1_0() -> None:
    """cowboy #140, node-http-proxy #125, carapaceproxy #346: HTTP/1.0 knows no chunks; nginx speaks it by default."""
    gateway = open_gateway()

    async def pieces() -> AsyncIterator[str]:
        for text in ("one ", "two ", "three"):
            yield text

    async def stream() -> StreamingResponse:
        return StreamingResponse(pieces(), media_type="text/plain")

    gateway.app.add_api_route("/stream", stream)
    async with serve_bounded(gateway.app, lifespan=False) as port:
        old = await send_raw(port, b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        new = await send_raw(port, b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = old.partition(b"\r\n\r\n")
    assert (b"transfer-encoding" in head.lower(), b"connection: close" in head.lower(), body) == (False, True, b"one two three")
    assert new.endswith(b"5\r\nthree\r\n0\r\n\r\n")


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "gzip, br"])
async def test_compressed_body_is_refused_by_name(encoding: str) -> None:
    """harper #1438, new-api #4913, certificate-transparency #1109: the error was about JSON, with the bytes in it."""
    http = open_gateway().http
    response = await http.post("/v1/chat/completions", content=b"\x1f\x8b\x08", headers=JSON_TYPE | {"Content-Encoding": encoding})
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "identity")
    assert encoding in response.json()["error"]["message"]


async def test_byte_order_mark_before_json_is_read_on_every_route() -> None:
    """MassTransit #3048, n8n #35933, Yardarm #130: what .NET writes is the same JSON."""
    gateway = open_gateway()
    paths = [path for path in POST_PATHS if not path.startswith("/console")]
    assert len(paths) > 8
    for path in paths:
        plain, marked = [await gateway.http.post(path, content=mark + b'{"x": 1}', headers=JSON_TYPE) for mark in (b"", b"\xef\xbb\xbf")]
        assert (marked.status_code, marked.text) == (plain.status_code, plain.text), path


async def test_byte_order_mark_before_a_form_is_read() -> None:
    """n8n #35933: the name of the first field had it, and nobody noticed."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    http = open_gateway().http
    plain, marked = [
        await http.post("/vision", content=mark + b"message=x&image_data=aGk=", headers=form) for mark in (b"", b"\xef\xbb\xbf")
    ]
    assert (marked.status_code, marked.text) == (plain.status_code, plain.text)
    assert plain.status_code != 422


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "Application/JSON;charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/vnd.api+json",
        "application/json;",
    ],
)
async def test_media_type_of_json_has_many_forms(media_type: str) -> None:
    """Old Java clients and gateways write parameters and capitals."""
    assert (await open_gateway().http.post("/jobs", content=b"{}", headers={"Content-Type": media_type})).status_code == 422


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET http://localhost/openapi.json HTTP/1.1", b"200"),
        (b"GET //openapi.json HTTP/1.1", b"200"),
        (b"GET /open%61pi.json HTTP/1.1", b"200"),
        (b"GET /openapi.json?a=%ff&b HTTP/1.1", b"200"),
        (b"GET /caf\xc3\xa9 HTTP/1.1", b"400"),
        (b"GET /%FF%ZZ HTTP/1.1", b"404"),
        (b"CONNECT localhost:80 HTTP/1.1", b"400"),
        (b"PRI * HTTP/2.0", b"400"),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1", b"414"),
    ],
    ids=["absolute", "two slashes", "escaped", "query", "raw UTF-8", "broken escapes", "CONNECT", "HTTP/2", "long"],
)
async def test_forms_of_request_lines(line: bytes, status: bytes) -> None:
    """Forward proxies send the absolute form; HTTP/2 with prior knowledge and TLS on this port are a 400, not silence."""
    gateway = open_gateway()
    async with serve_bounded(gateway.app, lifespan=False) as port:
        answer = await send_raw(port, line + b"\r\nHost: localhost\r\n\r\n")
    assert answer.split(b" ", 2)[1] == status


async def test_cookies_too_large_are_refused_by_name() -> None:
    """Other applications on the same host leave their cookies: the status says what is too large."""
    gateway = open_gateway()
    async with serve_bounded(gateway.app, lifespan=False) as port:
        answer = await send_raw(port, b"GET /console/make HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"a=b; " * 8000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431")
