"""The console without a browser: content security policy, CSRF, session cookie, login redirects, static files, errors."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from bus.settings import BusSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings

KEY = "a-key-for-the-tests-0001"


@pytest.fixture
async def http(bus_settings: BusSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(bus_settings, GatewaySettings.model_validate({"question_seconds": 1, "api_keys": f"kim:{KEY}"}))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        yield client


def csrf_token(page: httpx.Response) -> str:
    match = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    assert match
    return match[1]


async def log_in(http: httpx.AsyncClient) -> str:
    csrf = csrf_token(await http.get("/console/login"))
    assert (await http.post("/console/login", data={"csrf": csrf, "key": KEY})).status_code == 303
    return csrf_token(await http.get("/console/make"))


async def test_content_security_policy_blocks_foreign_scripts(http: httpx.AsyncClient) -> None:
    """No inline scripts or styles, no other hosts, no framing."""
    await log_in(http)
    page = await http.get("/console/make")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(
        r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=|javascript:|https?://(?!,)", page.text.replace("s3://, https://, file://", "")
    )


async def test_post_without_csrf_token_is_rejected(http: httpx.AsyncClient) -> None:
    csrf = await log_in(http)
    order = {"kind": "image_order", "prompt": "x", "width": "64", "height": "64"}
    for forged in ({}, {"csrf": ""}, {"csrf": "0" * 64}):
        assert (await http.post("/console/make", data=order | forged)).status_code == 403
    cross_site = await http.post("/console/make", data=order | {"csrf": csrf}, headers={"Sec-Fetch-Site": "cross-site"})
    assert cross_site.status_code == 403
    assert (await http.post("/console/make", data=order | {"csrf": csrf})).status_code == 303


async def test_csrf_token_of_another_session_is_rejected(http: httpx.AsyncClient) -> None:
    other = await log_in(http)
    http.cookies.clear()
    csrf = await log_in(http)
    assert other != csrf
    assert (await http.post("/console/make", data={"csrf": other, "prompt": "x"})).status_code == 403


async def test_session_cookie_authenticates_console_only(http: httpx.AsyncClient) -> None:
    """The API needs no CSRF token, so the cookie must not authenticate there."""
    await log_in(http)
    cookie = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
    assert (await http.get("/jobs", headers={"Cookie": cookie})).status_code == 401
    assert (await http.post("/jobs", json={"kind": "image_order", "prompt": "x"}, headers={"Cookie": cookie})).status_code == 401


async def test_unauthenticated_visitor_sees_only_login(http: httpx.AsyncClient) -> None:
    for path in ("/console/make", "/console/jobs", "/console/jobs/x/files/y.png", "/console/jobs/x/live", "/console/nowhere"):
        response = await http.get(path)
        assert (response.status_code, response.headers["location"].partition("?")[0]) == (303, "/console/login"), path
    assert (await http.get("/console/static/console.css")).status_code == 200
    fragment = await http.get("/console/jobs", headers={"HX-Request": "true"})
    assert (fragment.status_code, fragment.headers["hx-redirect"]) == (401, "/console/login")


async def test_root_leads_to_chat_page(http: httpx.AsyncClient) -> None:
    """Where a vLLM deployment has its page: at the root of a port. A visitor without a session logs in first."""
    assert (await http.get("/", follow_redirects=False)).headers["location"] == "/console/chat"
    login = await http.get("/", follow_redirects=True)
    assert (login.status_code, login.url.path, login.url.params["next"]) == (200, "/console/login", "/console/chat")
    assert (await http.post("/", json={})).status_code == 405
    await log_in(http)
    chat = await http.get("/", follow_redirects=True)
    assert (chat.status_code, chat.url.path) == (200, "/console/chat")
    assert 'id="chat-form"' in chat.text


@pytest.mark.parametrize("url", ["https://evil.example/", "//evil.example", "/\\evil.example", "/consoled", "/console/\n//evil", "/jobs"])
async def test_login_redirects_only_to_console(http: httpx.AsyncClient, url: str) -> None:
    csrf = csrf_token(await http.get("/console/login"))
    response = await http.post("/console/login", data={"csrf": csrf, "key": KEY, "next": url})
    assert response.headers["location"] == "/console"


async def test_static_path_traversal_is_rejected(http: httpx.AsyncClient) -> None:
    for name in ("..%2frouter.py", "../router.py", "%2e%2e/router.py", ".htmx.min.js", "x" * 60):
        assert (await http.get(f"/console/static/{name}")).status_code in (303, 404, 422), name


async def test_page_reports_missing_ledger(http: httpx.AsyncClient) -> None:
    await log_in(http)
    response = await http.get("/console/jobs")
    assert response.status_code == 504
    assert response.headers["content-type"].startswith("text/html")
    assert "no reply in time" in response.text
