"""An application with the gateway's routes and middleware whose services have no broker."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bus.settings import BusSettings
from bus.storage.claim_store import ClaimStore
from gateway.app import create_app
from gateway.compat.vertex import VertexSettings
from gateway.services import Services
from gateway.settings import GatewaySettings
from tests.support.fake_broker import FakePublisher, Replier, make_services


class FakeGateway:
    """`publisher.replies`: what each step replies. `http`: a client of the application."""

    def __init__(self, replies: dict[str, Replier], store: ClaimStore | None, settings: dict[str, Any], vertex: dict[str, Any]) -> None:
        self.publisher = FakePublisher(replies)
        self.services: Services = make_services(self.publisher, store, **settings)
        bus = BusSettings.model_validate({"amqp_url": "amqp://x"})
        self.app = create_app(bus, GatewaySettings.model_validate(settings), vertex=VertexSettings.model_validate(vertex))
        self.app.state.services = self.services
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://localhost")


OpenFakeGateway = Callable[..., FakeGateway]


@pytest.fixture
def gateway() -> OpenFakeGateway:
    """Open a gateway: `replies` by step, `store`, `vertex` settings; further arguments are gateway settings."""

    def open_gateway(
        replies: dict[str, Replier] | None = None, *, store: ClaimStore | None = None, vertex: dict[str, Any] | None = None, **settings: Any
    ) -> FakeGateway:
        return FakeGateway(replies or {}, store, settings, vertex or {})

    return open_gateway
