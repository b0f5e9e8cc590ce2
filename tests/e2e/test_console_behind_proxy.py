"""The console in a browser behind a real nginx with TLS and a path prefix, as docs/http.md configures it."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.parse import urlsplit

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.settings import GatewaySettings
from tests.e2e.chromium import open_browser
from tests.e2e.console_server import ConsoleServer, open_console_server
from tests.e2e.console_user import KEY, ConsoleUser
from tests.e2e.slow_image_actor import SLOW_IMAGE_ACTOR
from tests.support.certificates import make_certificates
from tests.support.own_database import own_database, with_database
from tests.support.reverse_proxies import open_nginx


def use_console(url: str) -> None:
    """Log in, order a picture, see its progress and the picture, also in the gallery, start from it, and chat."""
    with open_browser(any_certificate=True) as browser:
        user = ConsoleUser(browser, cast("ConsoleServer", SimpleNamespace(url=url)))
        user.log_in()
        user.open_page("/make")
        user.click("form#make details.further summary")
        user.fill(prompt="a quiet valley", width="128", height="128", seed="42")
        user.follow("form#make button.main")
        user.wait_until(lambda: user.element_property(".pictures img", "naturalWidth") == 128)
        assert str(user.element_property(".pictures img", "src")).startswith(f"{url}/jobs/")
        user.open_page("/gallery")
        user.wait_until(lambda: user.element_property(".gallery img", "naturalWidth") == 128)
        user.follow(".gallery .links a")
        assert user.browser.current_url.startswith(f"{url}/make?source=")
        user.wait_until(lambda: user.element_property("#mask-editor", "hidden") is False)
        assert user.element_property(".chosen img", "naturalWidth") == 128
        user.fill(prompt="the valley at night")
        user.follow("form#make button.main")
        user.wait_until(lambda: user.element_property(".pictures img", "naturalWidth") == 128)
        user.open_page("/jobs")
        user.wait_until(lambda: user.element_property("td.job img", "naturalWidth") == 128)
        user.open_page("/chat")
        user.fill(message="hello")
        user.click("#chat-form button.main")
        user.wait_until(lambda: "hello" in user.element_text(".message-assistant p") and user.count("#messages[aria-busy=false]"))
        cookies = {cookie["name"]: (cookie["path"], cookie["secure"]) for cookie in browser.get_cookies()}
        assert cookies == {"atelier_session": (urlsplit(url).path, True)}
        assert user.browser_errors() == []


async def test_console_works_behind_nginx_with_a_path(
    bus_settings: BusSettings, database_url: str, store_folder: Path, tmp_path: Path
) -> None:
    """changedetection.io #446, hermes-webui #219, gitea #31202: login, forms, events and pictures below a path.

    A database of its own: the list of jobs shows no pictures of other tests, whose stores are gone.
    """
    settings = GatewaySettings.model_validate({"api_keys": f"kim:{KEY}", "operators": ("kim",), "trusted_proxies": "127.0.0.1"})
    store = StoreSettings(store_url=store_folder.as_uri())
    async with own_database(database_url) as (own_url, _, _):
        with open_console_server(with_database(bus_settings, own_url), store, settings, SLOW_IMAGE_ACTOR) as server:
            gateway_port = urlsplit(server.url).port
            assert gateway_port
            async with open_nginx(tmp_path, make_certificates(tmp_path), gateway_port) as port:
                await asyncio.to_thread(use_console, f"https://localhost:{port}/atelier/console")
