"""The address of a client, by which requests without a key are limited."""

from ipaddress import IPv6Address, ip_address, ip_network

from fastapi import FastAPI
from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

MAX_ADDRESS_CHARS = 64


def trust_proxies(app: FastAPI, networks: tuple[str, ...]) -> None:
    """Take the client of a request from `X-Forwarded-For`, and its scheme from `X-Forwarded-Proto`, if a proxy in these networks sent it.

    The client is the right-most address that is no trusted proxy's: what stands to the left of it is the client's own claim.
    """
    if networks:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(networks))


def address_of(scope: Scope) -> str:
    """An IPv4 address; the /64 network of an IPv6 address, since one client has all of it; "" when unknown."""
    host = str((scope.get("client") or ("",))[0])[:MAX_ADDRESS_CHARS]
    if host.startswith("[") or host.count(":") == 1:  # with a port, as some proxies write it
        host = host.rpartition(":")[0].strip("[]") if not host.endswith("]") else host.strip("[]")
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else str(ip_network((address, 64), strict=False))
