"""What proxies write into headers, and what others write there. Each case names its report."""

import re
from typing import Any

import httpx
import pytest
from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import Headers

from gateway.middleware.forwarded import TrustedProxies
from gateway.middleware.public_url import public_url
from gateway.settings import GatewaySettings
from tests.unit.gateway.conftest import FakeGateway

KEY = "a-key-for-the-tests-0001"
BEARER = {"Authorization": f"Bearer {KEY}"}
PREFIX = "/atelier"
TRUSTED = {"trusted_proxies": "127.0.0.1,10.0.0.0/8"}
KEYS = {"api_keys": f"shop:{KEY}", "operators": "shop"}
FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example.com", "X-Forwarded-Prefix": PREFIX}


def forwarded_client(settings: dict[str, Any], peer: str = "127.0.0.1") -> tuple[FakeGateway, httpx.AsyncClient]:
    gateway = FakeGateway({}, None, KEYS | settings, {})
    transport = httpx.ASGITransport(gateway.app, client=(peer, 1))
    return gateway, httpx.AsyncClient(transport=transport, base_url="http://internal:8080", headers=BEARER)


async def public_address(settings: dict[str, Any], headers: dict[str, str] | list[tuple[str, str]], peer: str = "127.0.0.1") -> str:
    """The address of `/x`, the client and the scheme of a request, as `ADDRESS CLIENT`."""
    gateway, http = forwarded_client(settings, peer)

    async def tell(request: Request) -> str:
        assert request.client
        return f"{public_url(request, '/x')} {request.client.host}"

    gateway.app.add_api_route("/tell", tell)
    async with http:
        return str((await http.get("/tell", headers=headers)).json())


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(FORWARDED, "https://api.example.com/atelier/x 127.0.0.1", id="gpt4free #2740, chatgpt2api #22"),
        pytest.param({"X-Forwarded-Prefix": "/atelier/"}, "http://internal:8080/atelier/x 127.0.0.1", id="Traefik's slash at the end"),
        pytest.param(
            {"X-Forwarded-For": "198.51.100.7, 10.0.0.2", "X-Forwarded-Proto": "https, http"},
            "https://internal:8080/x 198.51.100.7",
            id="waitress #442, OpenLiberty #32928: a scheme per proxy",
        ),
        pytest.param(
            {
                "X-Forwarded-For": "9.9.9.9, 198.51.100.7",
                "X-Forwarded-Proto": "https, http",
                "X-Forwarded-Host": "evil.example, api.example",
            },
            "http://api.example/x 198.51.100.7",
            id="srvx #229: what stands to the left is the client's own claim",
        ),
        pytest.param(
            {"X-Forwarded-For": "9.9.9.9, 10.0.0.9, 198.51.100.7, 10.0.0.2"}, "http://internal:8080/x 198.51.100.7", id="httplib #2503"
        ),
        pytest.param({"X-Forwarded-For": "10.0.0.9, 10.0.0.2"}, "http://internal:8080/x 10.0.0.9", id="coder #26646: only proxies"),
        pytest.param({"X-Forwarded-For": "2001:db8::9c82"}, "http://internal:8080/x 2001:db8::9c82", id="vertx-web #2464, daphne #90"),
        pytest.param({"X-Forwarded-For": "[2001:db8::1]:4711"}, "http://internal:8080/x 2001:db8::1", id="suricata #1605"),
        pytest.param({"X-Forwarded-For": "198.51.100.7:60604"}, "http://internal:8080/x 198.51.100.7", id="aiohttp-remotes #102"),
        pytest.param({"X-Forwarded-For": "::ffff:198.51.100.7"}, "http://internal:8080/x 198.51.100.7", id="dual-stack listeners"),
        pytest.param({"X-Forwarded-For": "unknown"}, "http://internal:8080/x 127.0.0.1", id="akka-http #3790: no address"),
        pytest.param(
            {"X-Forwarded-For": "198.51.100.7, garbage<script>"}, "http://internal:8080/x 127.0.0.1", id="a proxy that appends no address"
        ),
        pytest.param(
            [("X-Forwarded-For", "9.9.9.9"), ("X-Forwarded-For", "198.51.100.7")],
            "http://internal:8080/x 198.51.100.7",
            id="two header lines",
        ),
        pytest.param(
            {"Forwarded": 'for="[2001:db8::1]:4711";proto=https;host="api.example.com"'},
            "https://api.example.com/x 2001:db8::1",
            id="node-http-proxy #1212",
        ),
        pytest.param(
            {"Forwarded": "For=9.9.9.9;Host=evil.example, for=198.51.100.7;proto=https;host=api.example, for=10.0.0.2;proto=http"},
            "https://api.example/x 198.51.100.7",
            id="http-types #508: several elements",
        ),
        pytest.param(
            {"Forwarded": 'for="_a;b, c\\"";host="a;proto=http", For=198.51.100.7:80; proto=https;x="\\"";host=api.example:8443,, '},
            "https://api.example:8443/x 198.51.100.7",
            id="separators inside quotes",
        ),
        pytest.param({"Forwarded": "for=_hidden;proto=https"}, "https://internal:8080/x 127.0.0.1", id="an obfuscated identifier"),
        pytest.param(
            {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=9.9.9.9;host=evil.example;proto=https"},
            "http://internal:8080/x 198.51.100.7",
            id="nginx passes on a Forwarded of its client",
        ),
        pytest.param(
            FORWARDED | {"X-Forwarded-Port": "8443"}, "https://api.example.com:8443/atelier/x 127.0.0.1", id="werkzeug #1023: another port"
        ),
        pytest.param(
            FORWARDED | {"X-Forwarded-Port": "80"}, "https://api.example.com/atelier/x 127.0.0.1", id="flow #119, nginx-proxy #918"
        ),
        pytest.param(
            {"X-Forwarded-Host": "api.example.com:443", "X-Forwarded-Proto": "HTTPS"},
            "https://api.example.com/x 127.0.0.1",
            id="a scheme's own port",
        ),
        pytest.param({"X-Forwarded-Proto": "javascript"}, "http://internal:8080/x 127.0.0.1", id="ontologies_api #219"),
        pytest.param(
            {"X-Forwarded-Prefix": "/a, /b", "X-Forwarded-For": "198.51.100.7, 10.0.0.2"},
            "http://internal:8080/a/b/x 198.51.100.7",
            id="two prefixes",
        ),
    ],
)
async def test_trusted_proxies_are_believed_as_far_as_they_reach(headers: Any, expected: str) -> None:
    assert await public_address(TRUSTED, headers) == expected


@pytest.mark.parametrize("settings", [{}, {"trusted_proxies": "192.0.2.1"}])
@pytest.mark.parametrize(
    "headers", [FORWARDED | {"X-Forwarded-For": "9.9.9.9"}, {"Forwarded": "for=9.9.9.9;proto=https;host=evil.example"}]
)
async def test_headers_of_others_are_ignored(settings: dict[str, Any], headers: dict[str, str]) -> None:
    """Faucet-v2 #23, gorouter #179: anybody could choose the address by which he is limited."""
    assert await public_address(settings, headers) == "http://internal:8080/x 127.0.0.1"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Prefix": "//evil.example"},
        {"X-Forwarded-Prefix": "/\\evil.example"},
        {"X-Forwarded-Prefix": "https://evil.example"},
        {"X-Forwarded-Prefix": "/a/../../evil"},
        {"X-Forwarded-Prefix": '/a"><script>alert(1)</script>'},
        {"X-Forwarded-Prefix": "/a%0d%0aSet-Cookie:x"},
        {"X-Forwarded-Prefix": "/" + "a/" * 5000},
        {"X-Forwarded-Host": "user@evil.example"},
        {"X-Forwarded-Host": "evil.example/path"},
        {"X-Forwarded-Host": "evil.example#"},
        {"X-Forwarded-Host": "a b"},
        {"Forwarded": 'for=6.6.6.6;host=evil.example;x=", for=198.51.100.7;proto=https'},
        {"Forwarded": 'for=6.6.6.6;host=evil.example;x="\\", for="[2001:db8::7]";proto=https'},
        {"Forwarded": 'for=6.6.6.6;host=evil.example;x=", for="[2001:db8::7]";proto=https'},
        {"Forwarded": 'for=6.6.6.6;host="evil.example"x, for=198.51.100.7;proto=https'},
        {"Forwarded": 'for="' * 6000},
    ],
    ids=lambda headers: str(headers)[:60],
)
async def test_malformed_forwarded_values_count_as_not_sent(headers: dict[str, str]) -> None:
    """Through a proxy that passes on what its client has sent: starlette #1855, #3279 (CVE-2026-48710)."""
    assert await public_address(TRUSTED, headers) == "http://internal:8080/x 127.0.0.1"


@pytest.mark.parametrize(
    "host", ["api@evil.example", "evil.example/x", "evil.example?x", "a b", "evil.example:80:80", "[::1", "a\\b", "domain, domain"]
)
async def test_malformed_host_is_refused(host: str) -> None:
    """starlette #1855, litestar #4813; project-pegaprox #626: a proxy that sets Host twice."""
    _, http = forwarded_client({})
    async with http:
        response = await http.get("/v1/models", headers={"Host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "host_malformed")


async def test_page_of_another_site_cannot_choose_the_host_that_is_checked() -> None:
    """mission-control #592: without keys, on the machine of a trusted proxy, a page whose name leads to that machine sends headers."""
    gateway = FakeGateway({}, None, TRUSTED | {"public_url": "https://art.example"}, {})
    statuses = [
        (await gateway.http.get("/v1/models", headers={"Host": host, "X-Forwarded-Host": forwarded})).status_code
        for host, forwarded in (("evil.example", "localhost"), ("localhost", "evil.example"), ("127.0.0.1:8080", "art.example"))
    ]
    assert statuses == [421, 421, 200]


@pytest.mark.parametrize("public_url", ["https://art.example", "https://art.example:443", "HTTPS://Art.Example:443/"])
async def test_public_address_is_served_without_a_key(public_url: str) -> None:
    """Browsers leave the scheme's own port out of Host and Origin; the setting may have it."""
    gateway = FakeGateway({}, None, {"public_url": public_url}, {})
    own = {"Host": "art.example", "Origin": "https://art.example", "Sec-Fetch-Site": "same-site"}
    read, written = await gateway.http.get("/v1/models", headers=own), await gateway.http.post("/jobs", json={}, headers=own)
    assert (read.status_code, written.status_code) == (200, 422)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"public_url": "https://art.example/studio"}, "https://art.example/studio/x 127.0.0.1"),
        ({"public_url": "https://art.example:8443"}, "https://art.example:8443/x 127.0.0.1"),
        ({"public_url": "https://art.example:443/studio"}, "https://art.example/studio/x 127.0.0.1"),
        ({"public_url": "http://art.example:443"}, "http://art.example:443/x 127.0.0.1"),
        ({"public_url": "https://art.example", "root_path": "studio/"}, "https://art.example/studio/x 127.0.0.1"),
        ({"root_path": "/studio"}, "https://api.example.com/studio/x 127.0.0.1"),
    ],
)
async def test_settings_win_over_headers(settings: dict[str, Any], expected: str) -> None:
    """exposrd #8: what is taken from requests is wrong in some installation; the address is a setting then."""
    assert await public_address(TRUSTED | settings, FORWARDED) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"public_url": "art.example"},
        {"public_url": "ftp://art.example"},
        {"public_url": "https://user:secret@art.example"},
        {"public_url": "https://art.example/?a=b"},
        {"public_url": "https://art.example//evil"},
        {"public_url": "https://art.example:0"},
        {"public_url": "https://art.example:65536"},
        {"root_path": "//evil.example"},
        {"root_path": "/a/../b"},
        {"root_path": "https://art.example/a"},
        {"public_url": "https://art.example/a", "root_path": "/b"},
        {"trusted_proxies": "proxy.example"},
        {"trusted_proxies": "0.0.0.0/0"},
        {"trusted_proxies": "::ffff:10.0.0.0/104"},
        {"trusted_proxies": "::ffff:10.0.0.1"},
    ],
)
def test_wrong_setting_is_refused_at_start(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings.model_validate(settings)


@pytest.mark.parametrize("prefix", ["/console", "/jobs"])
def test_prefix_that_is_a_path_of_the_gateway_is_refused_at_start(prefix: str) -> None:
    with pytest.raises(ValueError, match="GATEWAY_ROOT_PATH"):
        FakeGateway({}, None, {"root_path": prefix}, {})


@pytest.mark.parametrize("prefix", ["/atelier", "/api", "/v1", "/team/a.b"])
async def test_prefix_may_be_stripped_or_left(prefix: str) -> None:
    """BlackSheep #488, openapi behind Traefik: with `stripPrefix` and without."""
    _, http = forwarded_client({"root_path": prefix})
    async with http:
        for path in ("/docs", f"{prefix}/docs", f"{prefix}/docs/", f"{prefix}//docs", f"{prefix}/v1/models", "/v1/models"):
            assert (await http.get(path)).status_code == 200, path
        redirect = await http.get(f"{prefix}/redoc")
    assert redirect.headers["location"] == f"{prefix}/docs"


async def test_proxy_without_an_address_is_trusted_by_name() -> None:
    """uvicorn #931, #713, gunicorn #797: a proxy on a Unix socket has none."""
    assert (None in TrustedProxies(["unix"]), None in TrustedProxies(["10.0.0.0/8"])) == (True, False)
    read = TrustedProxies(["unix"]).read(Headers({"X-Forwarded-For": "198.51.100.7, unix:"}))
    assert read.client == "198.51.100.7"


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        pytest.param(TRUSTED, {"Origin": "https://api.example.com"} | FORWARDED, 303, id="hermes-webui #219, grafana #46418"),
        pytest.param(TRUSTED, {"Origin": "https://api.example.com:8443", "X-Forwarded-Port": "8443"} | FORWARDED, 303, id="next.js #77557"),
        pytest.param({}, {"Origin": "https://internal", "Host": "internal:443"}, 303, id="project-pegaprox #626: the scheme's own port"),
        pytest.param({"public_url": "https://art.example"}, {"Origin": "https://art.example"}, 303, id="mcp-context-forge #3437"),
        pytest.param({}, {"Origin": "https://api.example.com", "Sec-Fetch-Site": "same-origin"}, 303, id="gorilla/csrf #187"),
        pytest.param({}, {"Origin": "https://evil.example"} | FORWARDED, 403, id="mission-control #592: a header that anybody may send"),
        pytest.param(TRUSTED, {"Origin": "https://evil.example"} | FORWARDED, 403, id="another site"),
    ],
)
async def test_forms_of_the_own_pages_are_accepted_behind_a_proxy(settings: dict[str, Any], headers: dict[str, str], status: int) -> None:
    _, http = forwarded_client(settings)
    async with http:
        page = await http.get("/console/login")
        csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
        cookie = page.headers["set-cookie"].partition(";")[0]
        assert csrf
        response = await http.post("/console/choices", data={"csrf": csrf[1], "theme": "dark"}, headers=headers | {"Cookie": cookie})
    assert response.status_code == status


async def test_login_leads_nowhere_else() -> None:
    """Below a prefix, too, a redirect stays in the console."""
    _, http = forwarded_client(TRUSTED)
    async with http:
        page = await http.get("/console/jobs?state=failed", headers=FORWARDED)
        assert page.headers["location"] == "/atelier/console/login?next=/console/jobs%3Fstate%3Dfailed"
        for target in ("//evil.example", "https://evil.example", "/atelier/../x", "/console\\evil"):
            login = await http.get("/console/login", params={"next": target}, headers=FORWARDED)
            assert re.findall(r'name="next" value="([^"]*)"', login.text)[-1] == "/console", target


async def test_limits_of_addresses_count_the_client_behind_the_proxy() -> None:
    """spyhunt and others try headers until one is believed: failures count for the address that the trusted proxy has seen."""
    _, http = forwarded_client(TRUSTED | {"failed_keys": 2})
    async with http:
        wrong = {"Authorization": "Bearer wrong"}
        statuses = [
            (await http.get("/jobs", headers=wrong | {"X-Forwarded-For": f"9.9.9.{number}, 198.51.100.7"})).status_code
            for number in range(3)
        ]
        other = await http.get("/jobs", headers=wrong | {"X-Forwarded-For": "198.51.100.8"})
    assert (statuses, other.status_code) == ([401, 401, 429], 401)
