"""What proxies say about a request: `X-Forwarded-*`, or `Forwarded` (RFC 7239) of a request that has none of them.

Each proxy appends an element, the nearest one last. What stands to the left of the elements of trusted proxies is the client's own claim.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.datastructures import Headers

from gateway.middleware.addresses import UNIX_SOCKET, parse_address
from gateway.middleware.public_url import DEFAULT_PORTS, HOST, PREFIX

MAX_HOPS = 16
FAMILY = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix")
PARAMETER = re.compile(r"""[ \t]*+(?:([!#$%&'*+.^_`|~0-9A-Za-z-]++)=("(?:[^"\\]|\\.)*+"|[^\s",;=\\]*+))?+[ \t]*+([,;]|\Z)""")
"""One of `Forwarded`, and what ends it; none between two commas. Many write addresses with colons and brackets without quotes."""


@dataclass(frozen=True)
class ForwardedRequest:
    """The request as the outermost trusted proxy received it; None and "" where the proxies do not say it.

    `client`: the address. `host`: with the port unless it is the scheme's own. `prefix`: the path that the proxies serve the gateway below.
    """

    client: str | None = None
    scheme: str | None = None
    host: str | None = None
    prefix: str = ""


class TrustedProxies:
    """Addresses and networks of proxies. Raises ValueError for what is neither."""

    def __init__(self, names: Collection[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(name, strict=False) for name in names if name != UNIX_SOCKET]
        self._trusts_sockets = UNIX_SOCKET in names

    def __contains__(self, address: str | None) -> bool:
        """`address`: as `parse_address` gives it; None for a connection without one."""
        if address is None or address == UNIX_SOCKET:
            return self._trusts_sockets
        if not self._networks:
            return False
        parsed = ip_address(address)
        return any(parsed in network for network in self._networks)

    def read(self, headers: Headers) -> ForwardedRequest:
        """`headers`: of a request that came from a trusted proxy. What is malformed in them is ignored."""
        if any(name in headers for name in FAMILY):
            addresses, schemes, hosts, ports, prefixes = (split_values(headers, name) for name in FAMILY)
        else:
            elements = forwarded_elements(headers)
            addresses, schemes, hosts = ([element.get(name, "") for element in elements] for name in ("for", "proto", "host"))
            ports, prefixes = [], []
        client, hops = self._find_client(addresses)
        scheme = nth_from_right(schemes, hops).lower()
        scheme = scheme if scheme in DEFAULT_PORTS else ""
        host = nth_from_right(hosts, hops) or (headers.get("host", "") if ports else "")
        host = with_port(host, nth_from_right(ports, hops)).removesuffix(f":{DEFAULT_PORTS.get(scheme)}")
        prefix = "".join(part.rstrip("/") for part in prefixes[-1 - hops :])
        return ForwardedRequest(client, scheme or None, host if HOST.fullmatch(host) else None, prefix if PREFIX.fullmatch(prefix) else "")

    def _find_client(self, addresses: list[str]) -> tuple[str | None, int]:
        """The right-most address that is no trusted proxy's, and how many trusted ones stand to the right of it."""
        hops, client = 0, None
        for text in reversed(addresses[-MAX_HOPS:]):
            address = parse_address(text)
            if address is None:  # such as `unknown`, or a name
                return client, hops
            client = address
            if address not in self:
                return client, hops
            hops += 1
        return client, max(0, hops - 1)


def split_values(headers: Headers, name: str) -> list[str]:
    """The values of a header that is a list, in order, over all its lines."""
    return [value.strip() for line in headers.getlist(name) for value in line.split(",") if value.strip()]


def forwarded_elements(headers: Headers) -> list[dict[str, str]]:
    """The elements of `Forwarded`, each with its parameters by their names in lower case.

    Empty when any of it is malformed: a quote that a client leaves open would hide what the proxies have added.
    """
    text, position = ",".join(headers.getlist("forwarded")), 0
    elements: list[dict[str, str]] = [{}]
    while position < len(text):
        match = PARAMETER.match(text, position)
        if match is None:
            return []
        name, value, end = match.groups()
        if name:
            elements[-1][name.lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        if end == ",":
            elements.append({})
        position = match.end()
    return [element for element in elements if element][-MAX_HOPS:]


def nth_from_right(values: list[str], index: int) -> str:
    """Counted from 0. The left-most value of a shorter list: a proxy that replaces the value leaves one only. Empty without any."""
    return (values[-1 - index] if index < len(values) else values[0]) if values else ""


def with_port(host: str, port: str) -> str:
    """The host with a port that a proxy says apart from it. 80 and 443 are left out: proxies behind others say the wrong one of them."""
    has_port = ":" in host.rpartition("]")[2]
    return f"{host}:{port}" if host and port.isdecimal() and not has_port and port not in DEFAULT_PORTS.values() else host
