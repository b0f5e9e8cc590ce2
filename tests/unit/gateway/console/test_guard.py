"""Session, login redirect, CSRF check and error pages of the console's routes."""

import re

import httpx
import pytest

from gateway.console.form_body import SubmittedForm
from gateway.console.guard import safe_redirect_path
from tests.unit.gateway.console.conftest import KEY, OpenConsole


async def log_in(console: httpx.AsyncClient) -> str:
    """Log in; the CSRF token of the new session."""
    response = await console.post("/console/login", data={"csrf": csrf_token(await console.get("/console/login")), "key": KEY})
    assert response.status_code == 303, response.text
    return csrf_token(await console.get("/console/make"))


def csrf_token(page: httpx.Response) -> str:
    match = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    assert match
    return match[1]


@pytest.mark.parametrize("url", ["/console", "/console/jobs?state=failed", "/console?x=1"])
def test_redirect_path_within_console_is_kept(url: str) -> None:
    assert safe_redirect_path(url) == url


@pytest.mark.parametrize(
    "url", ["", "/", "/jobs", "/consoled", "//evil.example", "https://evil.example/console", "/console/\\x", "/console/\n"]
)
def test_redirect_path_outside_console_is_replaced(url: str) -> None:
    assert safe_redirect_path(url) == "/console"


def test_non_blank_fields_are_stripped() -> None:
    assert SubmittedForm(a=" x ", b=" ", c="y").non_blank("a", "b", "d") == {"a": "x"}


async def test_get_without_login_redirects_to_login_and_back(open_console: OpenConsole) -> None:
    response = await open_console().get("/console/jobs?state=failed")
    assert (response.status_code, response.headers["location"]) == (303, "/console/login?next=/console/jobs%3Fstate%3Dfailed")


async def test_htmx_request_without_login_redirects_whole_page(open_console: OpenConsole) -> None:
    response = await open_console().get("/console/jobs", headers={"HX-Request": "true"})
    assert (response.status_code, response.headers["hx-redirect"]) == (401, "/console/login")


async def test_page_needs_no_login_without_keys(open_console: OpenConsole) -> None:
    assert (await open_console(api_keys=None).get("/console/make")).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "cross-site"}])
async def test_form_without_valid_token_or_origin_is_rejected(open_console: OpenConsole, headers: dict[str, str]) -> None:
    console = open_console()
    csrf = await log_in(console)
    response = await console.post("/console/choices", data={"csrf": csrf if headers else "0" * 64, "theme": "dark"}, headers=headers)
    assert (response.status_code, "set-cookie" in response.headers) == (403, False)
    assert "CSRF check failed" in response.text


async def test_form_without_cookie_is_rejected(open_console: OpenConsole) -> None:
    console = open_console()
    csrf = csrf_token(await console.get("/console/login"))
    console.cookies.clear()
    assert (await console.post("/console/login", data={"csrf": csrf, "key": KEY})).status_code == 403


@pytest.mark.parametrize("body", [b"\xff=\xff", b"&".join(b"a=1" for _ in range(501))])
async def test_unreadable_form_is_bad_request(open_console: OpenConsole, body: bytes) -> None:
    response = await open_console().post("/console/login", content=body)
    assert (response.status_code, "form-unreadable" in response.text) == (400, True)


async def test_unknown_page_is_html_error_page(open_console: OpenConsole) -> None:
    console = open_console()
    await log_in(console)
    response = await console.get("/console/nowhere")
    assert (response.status_code, response.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "page-unknown" in response.text


async def test_former_address_redirects_permanently_to_workers(open_console: OpenConsole) -> None:
    console = open_console()
    assert (await console.get("/console/workshop")).headers["location"].startswith("/console/login")
    await log_in(console)
    response = await console.get("/console/workshop")
    assert (response.status_code, response.headers["location"]) == (308, "/console/workers")


@pytest.mark.parametrize(("settings", "secure"), [({}, False), ({"console_secure": True}, True)])
async def test_session_cookie_is_http_only_and_secure_when_configured(
    open_console: OpenConsole, settings: dict[str, bool], secure: bool
) -> None:
    cookie = (await open_console(**settings).get("/console/login")).headers["set-cookie"]
    assert all(attribute in cookie for attribute in ("atelier_session=", "HttpOnly", "SameSite=lax", "Path=/console"))
    assert ("Secure" in cookie) is secure


@pytest.mark.parametrize("host", ["x/console/login?", "x/console/login#", "localhost/console/choices", "x@y/console/login?"])
async def test_host_header_does_not_choose_the_path_that_is_checked(host: str, open_console: OpenConsole) -> None:
    """Every page that needs a login, and a form of one."""
    console = open_console()
    for path in ("/console/make", "/console/jobs", "/console/dead-letters", "/console/workers", "/console/chat", "/console/nowhere"):
        response = await console.get(path, headers={"Host": host})
        assert (response.status_code, response.headers["location"].startswith("/console/login?next=/console/")) == (303, True), path
        assert host not in response.headers["location"]


async def test_unexpected_error_is_an_error_page(open_console: OpenConsole) -> None:
    """The services of this console are missing."""
    console = open_console()
    await log_in(console)
    response = await console.get("/console/jobs")
    assert (response.status_code, response.headers["content-type"]) == (500, "text/html; charset=utf-8")
    assert "NoneType" not in response.text
