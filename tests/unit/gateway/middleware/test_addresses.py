"""The address by which a client is limited, directly and behind trusted proxies."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import ValidationError

from gateway.middleware.addresses import address_of
from gateway.middleware.proxies import ProxyMiddleware
from gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("192.0.2.7:5044", 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("[2001:db8:1:2:ffff::1]:443", 0), "2001:db8:1:2::/64"),
        (("[2001:db8:1:2::1]", 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("x" * 5000, 1), "x" * 64),
        (("", 0), ""),
        (None, ""),
    ],
)
def test_client_is_limited_by_address_or_network(client: Any, address: str) -> None:
    assert address_of({"type": "http", "client": client}) == address


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ("", "10.0.0.1", ["198.51.100.7"], "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.0/8", "10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.0/8", "10.0.0.1", ["203.0.113.9, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.0/8", "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
    ],
)
async def test_only_a_trusted_proxy_names_the_client(trusted: str, peer: str, forwarded: list[str], client: str) -> None:
    app = FastAPI()

    @app.get("/")
    async def read(request: Request) -> str:
        assert request.client
        return request.client.host

    app.add_middleware(ProxyMiddleware, settings=GatewaySettings.model_validate({"trusted_proxies": trusted}), routes=())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(peer, 1)), base_url="http://localhost") as http:
        headers = [("X-Forwarded-For", value) for value in forwarded]
        assert (await http.get("/", headers=headers)).json() == client


@pytest.mark.parametrize("value", ["*", "10.0.0.0/33", "proxy.example", "0.0.0.0/0", "::/0"])
def test_only_addresses_and_networks_can_be_trusted(value: str) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings.model_validate({"trusted_proxies": value})
