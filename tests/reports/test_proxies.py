"""Behind proxies: reports of people whose service runs below a path, behind TLS, or behind several proxies. Each case names its report."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fastapi import Request

from actors import dead_letters
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway import sse
from gateway.app import create_app
from gateway.problems import HttpProblem
from gateway.settings import GatewaySettings
from gateway.sse import sse_response
from tests.support.broker_client import StartWorker
from tests.support.certificates import make_certificates
from tests.support.fake_broker import FakePublisher, make_services
from tests.support.fake_text_actor import FakeTextActor
from tests.support.gateway_app import JOB_ACTORS, order_body, parse_events, wait_until_job_ended
from tests.support.http_gateway import serve_bounded
from tests.support.reverse_proxies import open_caddy, open_nginx

KEY = "a-key-for-the-tests-0001"
BEARER = {"Authorization": f"Bearer {KEY}"}
PREFIX = "/atelier"
TRUSTED = {"trusted_proxies": "127.0.0.1,10.0.0.0/8"}
KEYS = {"api_keys": f"shop:{KEY}", "operators": "shop"}
FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example.com", "X-Forwarded-Prefix": PREFIX}


@asynccontextmanager
async def proxied(
    proxy: str, bus: BusSettings, store: Path, folder: Path, start_worker: StartWorker, settings: dict[str, Any], **nginx: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real proxy with TLS before a gateway with its workers."""
    certificates = make_certificates(folder)
    app = create_app(bus, GatewaySettings.model_validate(KEYS | settings), StoreSettings(store_url=store.as_uri()))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(start_worker(*JOB_ACTORS, *dead_letters.ACTORS, *FakeTextActor().actors))
        gateway_port = await stack.enter_async_context(serve_bounded(app))
        opened = (
            open_caddy(folder, certificates, gateway_port) if proxy == "caddy" else open_nginx(folder, certificates, gateway_port, **nginx)
        )
        port = await stack.enter_async_context(opened)
        context = ssl.create_default_context(cafile=certificates.authority)
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=f"https://localhost:{port}", verify=context, timeout=30))


@pytest.mark.parametrize(
    ("proxy", "settings"),
    [
        pytest.param("nginx", TRUSTED, id="nginx as documented"),
        pytest.param("caddy", TRUSTED, id="Caddy as documented"),
        pytest.param("nginx without headers", {"root_path": PREFIX}, id="nginx that sends nothing, GATEWAY_ROOT_PATH"),
    ],
)
async def test_every_address_of_a_job_is_one_that_the_client_can_open(
    proxy: str, settings: dict[str, Any], bus_settings: BusSettings, store_folder: Path, tmp_path: Path, start_worker: StartWorker
) -> None:
    """xtekky/gpt4free #2740, FastAPI's #829 and #1294: behind TLS and a path the links were http:// without the path.

    fastapi #1441, eneo #871: `/jobs/` was redirected to http:// without the path, and a POST lost its body.
    """
    silent = {
        "proxy_set_header X-Forwarded-Proto": "proxy_set_header X-Forwarded-Proto '';",
        "proxy_set_header X-Forwarded-Host": "proxy_set_header X-Forwarded-Host '';",
        "proxy_set_header X-Forwarded-Prefix": "proxy_set_header X-Forwarded-Prefix '';",
        "proxy_set_header Host": "",
    }
    nginx = silent if proxy == "nginx without headers" else {}
    async with proxied(proxy, bus_settings, store_folder, tmp_path, start_worker, settings, **nginx) as http:
        accepted = await http.post(f"{PREFIX}/jobs/", json=order_body(), headers=BEARER)
        assert accepted.status_code == 202, accepted.text
        links = accepted.json()["links"]
        assert {*links.values(), accepted.headers["location"]} == {links["self"], links["events"]}
        assert links["self"].startswith(f"{PREFIX}/jobs/")
        http.headers.update(BEARER)
        http.base_url = http.base_url.join(f"{PREFIX}/")
        job = await wait_until_job_ended(http, accepted.json()["job_id"])
        assert job["state"] == "completed"
        root = str(http.base_url).removesuffix(f"{PREFIX}/")
        media_types = {(await http.get(root + file["href"])).headers["content-type"] for file in job["files"]}
        assert media_types == {"image/png", "image/jpeg"}, "the pictures and their thumbnails"
        assert parse_events((await http.get(root + links["events"])).text)[-1]["event"] == "job.completed"
        if proxy != "nginx without headers":
            body = {"prompt": "harbour", "size": "64x64", "response_format": "url"}
            pictures = (await http.post(f"{root}{PREFIX}/v1/images/generations", json=body)).json()
            url = pictures["data"][0]["url"]
            assert url.startswith(f"{root}{PREFIX}/jobs/")
            assert (await http.get(url)).content.startswith(b"\x89PNG")


ADDRESS = re.compile(r'(?:href|src|action|hx-get|sse-connect)="([^"#]*)"')


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
async def test_console_and_documents_work_below_a_path(
    proxy: str, bus_settings: BusSettings, store_folder: Path, tmp_path: Path, start_worker: StartWorker
) -> None:
    """changedetection.io #446, FreshRSS #2201, litellm #39391: cookies for `/` without `Secure`, so that nobody could log in.

    jentic-one #373, PostgREST #806: `/docs` and generated clients called the server without the path.
    """
    async with proxied(proxy, bus_settings, store_folder, tmp_path, start_worker, TRUSTED) as http:
        login = await http.get(f"{PREFIX}/console", follow_redirects=True)
        assert login.url.path == f"{PREFIX}/console/login"
        csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', login.text)
        assert csrf
        form = {"csrf": csrf[1], "key": KEY, "next": "/console/make"}
        origin = {"Origin": str(http.base_url).rstrip("/")}
        entered = await http.post(f"{PREFIX}/console/login", data=form, headers=origin)
        assert (entered.status_code, entered.headers["location"]) == (303, f"{PREFIX}/console/make")
        assert all(f"Path={PREFIX}/console" in cookie and "Secure" in cookie for cookie in entered.headers.get_list("set-cookie"))
        job_id = (await http.post(f"{PREFIX}/jobs?wait=20", json=order_body(), headers=BEARER)).json()["job_id"]
        others = re.compile(rf"/jobs/(?!{re.escape(job_id)})[^/?]")  # of other tests, whose stores are gone
        opened, waiting, pages = set[str](), [f"{PREFIX}/console/make", f"{PREFIX}/docs", f"{PREFIX}/asyncapi"], 0
        while waiting:
            address = waiting.pop()
            if address in opened:
                continue
            opened.add(address)
            response = await http.get(address, headers=BEARER, follow_redirects=True)
            assert response.status_code == 200, (address, response.text[:200])
            if "text/html" in response.headers["content-type"]:
                pages += 1
                found = [unescape(link) for link in ADDRESS.findall(response.text) if not link.startswith(("data:", "?"))]
                assert [link for link in found if not link.startswith(f"{PREFIX}/")] == [], address
                posts = set(re.findall(r'method="post" action="([^"]*)"', response.text))
                waiting += [link for link in found if link not in posts and not others.search(link)]
        assert pages > 6
        assert any(address.endswith(".png") for address in opened)
        assert "/atelier/openapi.json" in (await http.get(f"{PREFIX}/docs/start.js")).text
        assert (await http.get(f"{PREFIX}/openapi.json")).json()["servers"] == [{"url": PREFIX}]


@pytest.mark.parametrize(
    "nginx",
    [
        {},
        {"proxy_http_version": "proxy_http_version 1.0;"},
        {"client_max_body_size": "client_max_body_size 32m; proxy_request_buffering off;"},
    ],
    ids=["as documented", "HTTP/1.0", "without request buffering"],
)
async def test_streams_and_large_bodies_pass_nginx(
    nginx: dict[str, str], bus_settings: BusSettings, store_folder: Path, tmp_path: Path, start_worker: StartWorker
) -> None:
    """harness #1293, open-design #111: a silent stream is cut, a busy one is collected. deno #20274, node-fetch #213: bodies in chunks."""
    settings = TRUSTED | {"keepalive_seconds": 0.2}
    async with proxied("nginx", bus_settings, store_folder, tmp_path, start_worker, settings, **nginx) as http:

        async def body() -> AsyncIterator[bytes]:
            yield b'{"message": "hello", "stream": true, "image_data": "'
            for _ in range(30):
                yield b"A" * (100 << 10)
            yield b'"}'

        response = await http.post(f"{PREFIX}/vision", content=body(), headers=BEARER | {"Content-Type": "application/json"})
        assert response.status_code == 400, "no picture, but read"
        answer = await http.post(f"{PREFIX}/generate", json={"message": "hello", "stream": True}, headers=BEARER)
        assert [event["event"] for event in parse_events(answer.text)][-1] == "done"


async def test_stream_sends_comments_while_it_waits_and_says_its_error_in_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """harness #1293: nginx ends a response that is silent for a minute. An error that comes soon keeps its status."""

    async def slow(error: bool) -> AsyncIterator[str]:
        await asyncio.sleep(0.12)
        if error:
            raise HttpProblem(503, "model-away", "the model is away")
        yield "data: 1\n\n"
        await asyncio.sleep(0.12)
        yield "data: 2\n\n"

    texts = []
    services = make_services(FakePublisher({}), keepalive_seconds=0.05)
    scope = {"state": {"guards": ExitStack()}}
    request = cast("Request", SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(services=services)), scope=scope))
    with pytest.raises(HttpProblem, match="away"):
        await sse_response(request, cast("Any", slow(True)))
    monkeypatch.setattr(sse, "FIRST_CHUNK_SECONDS", 0.05)
    for error in (False, True):
        response = await sse_response(request, cast("Any", slow(error)))
        assert response.headers["x-accel-buffering"] == "no"
        assert "no-transform" in response.headers["cache-control"]
        texts.append("".join([str(chunk) async for chunk in response.body_iterator]))
    assert re.fullmatch(r"(: keepalive\n\n){1,2}data: 1\n\n(: keepalive\n\n){1,2}data: 2\n\n", texts[0])
    assert "event: error\n" in texts[1]
    assert "the model is away" in texts[1]
