"""The address of a client, by which requests without a key are limited."""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.types import Scope

MAX_ADDRESS_CHARS = 64
UNIX_SOCKET = "unix"
"""The name, in GATEWAY_TRUSTED_PROXIES, of a proxy that connects through a Unix socket and so has no address."""


def address_of(scope: Scope) -> str:
    """An IPv4 address; the /64 network of an IPv6 address, since one client has all of it; "" when unknown."""
    return network_of(str((scope.get("client") or ("",))[0])[:MAX_ADDRESS_CHARS])


@lru_cache(1024)
def network_of(host: str) -> str:
    """`address_of`, for the address of a connection. Each request asks for it several times."""
    address = parse_address(host)
    if address is None or ":" not in address:
        return address or host
    return str(ip_network((IPv6Address(address), 64), strict=False))


def parse_address(text: str) -> str | None:
    """The IP address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`; `unix` for `unix:`; else None.

    An IPv4 address that is written as an IPv6 one is the same client.
    """
    return parse_short(text.strip().strip('"')[:MAX_ADDRESS_CHARS])


@lru_cache(1024)
def parse_short(text: str) -> str | None:
    """`parse_address` of a text that is cut: what is remembered is bounded, whatever a client sends."""
    if text.lower() in (UNIX_SOCKET, f"{UNIX_SOCKET}:"):
        return UNIX_SOCKET
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
