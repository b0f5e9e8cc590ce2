"""The console's routes in an application without broker or admission middleware."""

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from gateway.console.router import ROUTERS
from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.sessions import Sessions
from gateway.problems import install_error_handlers
from gateway.services import Services
from gateway.settings import GatewaySettings
from tests.support.fake_broker import FakePublisher

KEY = "k" * 20

OpenConsole = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def open_console() -> AsyncIterator[OpenConsole]:
    """`open_console(api_keys=None)`: a client of the console with these gateway settings."""
    clients: list[httpx.AsyncClient] = []

    def open_client(**settings: Any) -> httpx.AsyncClient:
        gateway_settings = GatewaySettings.model_validate({"api_keys": f"kim:{KEY}"} | settings)
        sessions = Sessions(ApiKeys(gateway_settings), gateway_settings.console_session_seconds)
        absent = cast("Any", None)
        app = FastAPI()
        app.state.services = Services(
            settings=gateway_settings,
            sessions=sessions,
            publisher=cast("Any", FakePublisher({})),
            subscription=absent,
            commands=absent,
            jobs=absent,
            text_status=absent,
        )
        for router in ROUTERS:
            app.include_router(router)
        install_error_handlers(app)
        clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost"))
        return clients[-1]

    yield open_client
    for client in clients:
        await client.aclose()
