"""The pages Dead letters: what a visitor enters is checked, kept in links and redirects, and encoded."""

from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.unit.gateway.conftest import OpenFakeGateway
from tests.unit.gateway.console.test_guard import csrf_token

FILTERS = {"group": "g&x=1#y", "step": "a b", "code": "é?", "state": "archived", "tenant": "shop", "job_id": "j+1"}


@pytest.fixture
async def console(gateway: OpenFakeGateway) -> httpx.AsyncClient:
    return gateway(
        {
            "dead-letter.list": {"letters": [], "total": 500},
            "dead-letter.move": {"dry_run": False, "to": "archived", "letters": 1},
        }
    ).http


async def post(console: httpx.AsyncClient, path: str, **form: Any) -> httpx.Response:
    csrf = csrf_token(await console.get("/console/make"))
    return await console.post(f"/console/dead-letters{path}", data={"csrf": csrf} | form)


async def test_action_returns_to_the_list_with_its_filters(console: httpx.AsyncClient) -> None:
    """All but the state, which the action has changed."""
    response = await post(console, "/do", action="archive", **FILTERS)
    assert response.status_code == 303, response.text
    address = urlsplit(response.headers["location"])
    assert (address.path, address.fragment) == ("/console/dead-letters/list", "")
    assert {name: values[0] for name, values in parse_qs(address.query).items()} | {"state": "archived"} == FILTERS
    assert "state" not in address.query


async def test_action_on_one_letter_returns_to_it(console: httpx.AsyncClient) -> None:
    response = await post(console, "/do", action="archive", id="../list?x=1")
    assert response.headers["location"] == "/console/dead-letters/..%2Flist%3Fx%3D1"


@pytest.mark.parametrize("offset", ["-50", "-1", "x", "99999999999999999999"])
async def test_invalid_offset_is_an_error_page(console: httpx.AsyncClient, offset: str) -> None:
    response = await console.get(f"/console/dead-letters/list?offset={offset}")
    assert (response.status_code, response.headers["content-type"]) == (422, "text/html; charset=utf-8")


async def test_older_link_keeps_the_filters(console: httpx.AsyncClient) -> None:
    page = (await console.get("/console/dead-letters/list", params=FILTERS | {"offset": 50})).text
    link = unescape(page.partition('<p><a href="?')[2].partition('"')[0])
    assert {name: values[0] for name, values in parse_qs(link).items()} == FILTERS | {"offset": "100"}


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/do", {"action": "archive", "state": "nonsense"}),
        ("/preview", {"action": "archive", "group": "x" * 5000}),
        ("/do", {"action": "archive", "id": "x" * 5000}),
    ],
)
async def test_invalid_selection_is_an_error_page(console: httpx.AsyncClient, path: str, form: dict[str, str]) -> None:
    response = await post(console, path, **form)
    assert (response.status_code, response.headers["content-type"]) == (422, "text/html; charset=utf-8")
    assert "input-invalid" in response.text
    assert "x" * 300 not in response.text


@pytest.mark.parametrize("body", ["{", "[]", '{"a": NaN}', "[" * 5000])
async def test_submitted_body_that_is_no_json_object_is_an_error_page(gateway: OpenFakeGateway, body: str) -> None:
    letter = {
        "id": "l-1", "group_id": "g", "step": "image", "code": "x", "state": "unresolved", "dead_queue": "atelier.dead.image",
        "message_id": "m", "sent_as": "m", "job_id": "j", "body": "{}",
        "first_failed_at": "2026-01-01T00:00:00Z", "last_failed_at": "2026-01-01T00:00:00Z", "changed_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    console = gateway({"dead-letter.get": letter}).http
    response = await post(console, "/l-1/edit", body_json=body)
    assert (response.status_code, response.headers["content-type"]) == (422, "text/html; charset=utf-8"), response.text
    assert "input-invalid" in response.text
