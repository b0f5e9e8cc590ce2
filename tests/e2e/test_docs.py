"""The page /docs in a browser: it shows the operations, and requests nothing from another host."""

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.e2e.chromium import open_browser
from tests.e2e.console_server import ConsoleServer
from tests.e2e.console_user import ConsoleUser

REQUESTED = "return JSON.stringify(performance.getEntriesByType('resource').map(entry => entry.name))"
"""The addresses of everything that the page has requested."""


@pytest.fixture
def reader(console_server: ConsoleServer) -> Iterator[ConsoleUser]:
    with open_browser() as browser:
        yield ConsoleUser(browser, console_server)


def origin_of(server: ConsoleServer) -> str:
    address = urlsplit(server.url)
    return f"{address.scheme}://{address.netloc}"


def test_docs_page_shows_operations_without_another_host(reader: ConsoleUser, console_server: ConsoleServer) -> None:
    gateway = origin_of(console_server)
    reader.browser.get(f"{gateway}/docs")
    reader.wait_until(lambda: "/jobs/{job_id}" in reader.browser.page_source)
    reader.browser.execute_script("document.querySelector('.opblock-post button').click()")
    reader.wait_until(lambda: "Execute" in reader.page_text())
    requested = json.loads(reader.browser.execute_script(REQUESTED))
    assert {urlsplit(address).path for address in requested if not address.startswith("data:")} >= {"/openapi.json", "/docs/swagger-ui.css"}
    assert {urlsplit(address).netloc for address in requested if not address.startswith("data:")} == {urlsplit(gateway).netloc}
    assert reader.browser_errors() == []


def test_redoc_leads_to_the_docs_page(reader: ConsoleUser, console_server: ConsoleServer) -> None:
    reader.browser.get(f"{origin_of(console_server)}/redoc")
    assert urlsplit(reader.browser.current_url).path == "/docs"
