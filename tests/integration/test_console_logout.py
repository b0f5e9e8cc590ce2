"""A logout ends the session at every gateway that is connected to the broker."""

import asyncio
import time

import httpx
from fastapi import FastAPI

from bus.settings import BusSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.integration.test_console import KEY, csrf_token, log_in


def open_app(bus: BusSettings) -> FastAPI:
    return create_app(bus, GatewaySettings.model_validate({"question_seconds": 1, "api_keys": f"kim:{KEY}"}))


def client_of(app: FastAPI, cookie: str = "") -> httpx.AsyncClient:
    headers = {"Cookie": f"atelier_session={cookie}"} if cookie else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


async def opens_page(app: FastAPI, cookie: str) -> bool:
    async with client_of(app, cookie) as http:
        return (await http.get("/console/make")).status_code == 200


async def test_logout_ends_a_copied_session_at_every_gateway(bus_settings: BusSettings) -> None:
    first, second = open_app(bus_settings), open_app(bus_settings)
    async with first.router.lifespan_context(first), second.router.lifespan_context(second):
        async with client_of(first) as browser:
            await log_in(browser)
            cookie = browser.cookies["atelier_session"]
            assert [await opens_page(app, cookie) for app in (first, second)] == [True, True]
            await browser.post("/console/logout", data={"csrf": csrf_token(await browser.get("/console/make"))})
        assert not await opens_page(first, cookie)
        deadline = time.monotonic() + 5
        while await opens_page(second, cookie):
            assert time.monotonic() < deadline, "the other gateway did not learn of the logout"
            await asyncio.sleep(0.05)
        async with client_of(second) as browser:
            await log_in(browser)
            assert await opens_page(first, browser.cookies["atelier_session"]), "a new session is none of the revoked"
