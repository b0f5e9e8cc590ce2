"""Login, logout, preferences and static files."""

import pytest

from tests.unit.gateway.console.conftest import KEY, OpenConsole
from tests.unit.gateway.console.test_guard import csrf_token, log_in


async def test_unknown_key_shows_login_again(open_console: OpenConsole) -> None:
    console = open_console()
    csrf = csrf_token(await console.get("/console/login"))
    response = await console.post("/console/login", data={"csrf": csrf, "key": "x" * 20, "next": "/console/jobs"})
    assert (response.status_code, "Unknown API key." in response.text) == (401, True)
    assert 'name="next" value="/console/jobs"' in response.text
    assert (await console.get("/console/make")).status_code == 303


async def test_failed_logins_are_limited_by_address_and_a_valid_key_still_opens_a_session(open_console: OpenConsole) -> None:
    console = open_console(failed_keys=5)
    form = {"csrf": csrf_token(await console.get("/console/login")), "key": "x" * 20}
    statuses = [(await console.post("/console/login", data=form)).status_code for _ in range(5)]
    assert set(statuses) == {401}
    response = await console.post("/console/login", data=form)
    assert (response.status_code, int(response.headers["retry-after"]) > 0) == (429, True)
    assert (await console.post("/console/login", data=form | {"key": KEY})).status_code == 303


@pytest.mark.parametrize(("settings", "login"), [({}, True), ({"api_keys": None}, False)])
async def test_login_page_redirects_when_no_login_is_needed(open_console: OpenConsole, settings: dict[str, None], login: bool) -> None:
    console = open_console(**settings)
    if login:
        await log_in(console)
    response = await console.get("/console/login?next=/console/jobs")
    assert (response.status_code, response.headers["location"]) == (303, "/console/jobs")


async def test_logout_ends_session(open_console: OpenConsole) -> None:
    """Also for a copy of its cookie, and the browser gets no new one."""
    console = open_console()
    csrf = await log_in(console)
    copied = console.cookies["atelier_session"]
    response = await console.post("/console/logout", data={"csrf": csrf})
    assert (response.status_code, response.headers["location"]) == (303, "/console/login")
    assert len(response.headers.get_list("set-cookie")) == 1
    assert (await console.get("/console/make")).status_code == 303
    console.cookies.set("atelier_session", copied)
    response = await console.get("/console/make")
    assert (response.status_code, response.headers["location"]) == (303, "/console/login?next=/console/make")


async def test_preferences_are_stored_and_applied(open_console: OpenConsole) -> None:
    console = open_console()
    csrf = await log_in(console)
    await console.post("/console/choices", data={"csrf": csrf, "language": "ko", "theme": "dark"})
    page = await console.get("/console/make")
    assert '<html lang="ko" data-theme="dark">' in page.text


async def test_unknown_preferences_are_ignored(open_console: OpenConsole) -> None:
    console = open_console()
    response = await console.post("/console/choices", data={"csrf": await log_in(console), "language": "xx", "theme": "blue"})
    assert (response.status_code, "set-cookie" in response.headers) == (303, False)


async def test_static_file_is_cached_and_needs_no_login(open_console: OpenConsole) -> None:
    console = open_console()
    response = await console.get("/console/static/console.css")
    assert (response.status_code, "immutable" in response.headers["cache-control"]) == (200, True)
    assert (await console.get("/console/static/missing.css")).status_code == 404
