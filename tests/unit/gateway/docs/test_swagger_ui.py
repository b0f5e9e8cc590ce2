"""The page /docs: complete, served from the package, and without another host."""

import re

import httpx

from gateway.docs.swagger_ui import ASSET_PATHS, PAGE, START_CODE
from tests.unit.gateway.conftest import OpenFakeGateway

KEY = "k" * 32


async def test_page_and_its_files_need_no_key_and_name_no_other_host(gateway: OpenFakeGateway) -> None:
    http = gateway(api_keys=f"shop:{KEY}").http
    page = await http.get("/docs")
    assert (page.status_code, page.text) == (200, PAGE.replace("PREFIX", ""))
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert set(addresses) == {*ASSET_PATHS, "data:,", "/openapi.json"}
    for address in ASSET_PATHS:
        assert (await http.get(address)).status_code == 200
    assert "//" not in PAGE
    assert "https:" not in START_CODE
    assert "validatorUrl: null" in START_CODE


async def test_style_sheet_loads_nothing_from_another_host(gateway: OpenFakeGateway) -> None:
    css = (await gateway().http.get("/docs/swagger-ui.css")).text
    addresses = re.findall(r"url\(\s*[\"']?(.{5})", css)
    assert len(addresses) > 3
    assert set(addresses) == {"data:"}
    assert "@import" not in css


async def test_policy_allows_only_the_gateway_itself(gateway: OpenFakeGateway) -> None:
    policy = (await gateway().http.get("/docs")).headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["connect-src"] == "'self'"
    assert not re.search(r"https?:|\*", policy)


async def test_former_page_redirects(gateway: OpenFakeGateway) -> None:
    response = await gateway().http.get("/redoc")
    assert (response.status_code, response.headers["location"]) == (308, "/docs")


async def test_page_is_absent_without_its_api(gateway: OpenFakeGateway) -> None:
    http = gateway(apis="jobs").http
    for path in ("/docs", "/redoc", "/openapi.json", *ASSET_PATHS):
        assert (await http.get(path)).status_code == 404


async def test_every_page_has_the_security_headers(gateway: OpenFakeGateway) -> None:
    """Of all routes without path parameters that answer with HTML."""
    http = gateway(
        {"conversation.list": {"conversations": [], "total_conversations": 0, "total_messages": 0}, "job.list": {"jobs": []}}
    ).http
    for path in ("/docs", "/asyncapi", *(f"/console/{page}" for page in ("make", "login", "jobs", "chat", "nowhere", "static/none.js"))):
        response = await http.get(path, follow_redirects=True)
        assert_hardened(response)


def assert_hardened(response: httpx.Response) -> None:
    policy = response.headers["content-security-policy"]
    for directive in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action '"):
        assert directive in policy, (response.url, directive)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] in ("no-referrer", "same-origin")
