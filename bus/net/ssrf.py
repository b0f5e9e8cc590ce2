"""Protection against server-side request forgery: a URL from a message reaches the public internet only.

The host is resolved once, all its addresses are checked, and the connection goes to a checked address, so that a name that resolves
differently the second time gains nothing. The certificate is still verified against the host name.
"""

import asyncio
import ipaddress
import socket
import ssl

import httpx

from bus.errors import PermanentError, TemporaryError
from bus.net.addresses import redact_uri
from bus.net.settings import AddressSettings
from bus.net.tls import create_ssl_context

NAT64_PREFIX = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""The only IPv6 addresses that IANA has assigned to the public internet, less those of SPECIAL_NETWORKS."""
SPECIAL_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # an internal service of a cloud
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
"""IANA's special-purpose registries (RFC 6890) and multicast. `ipaddress` alone is not enough: its lists differ between Python releases,
and `is_global` is true for site-local addresses. The tunnels 6to4 and Teredo are refused as a whole."""


class GuardedTransport(httpx.AsyncBaseTransport):
    """An httpx transport that checks every request, also each redirect. Raises PermanentError(code) for a refused URL."""

    def __init__(self, rules: AddressSettings, code: str, *, verify: ssl.SSLContext | None = None) -> None:
        # No keep-alive: the pool identifies a connection by its address, which two host names may share.
        verify = verify or create_ssl_context(rules.tls_ca_file)
        self._inner = httpx.AsyncHTTPTransport(verify=verify, limits=httpx.Limits(max_keepalive_connections=0))
        self._rules, self._code = rules, code

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        last_error: httpx.TransportError | None = None
        for address in await resolve_allowed(request.url, self._rules, self._code):
            try:
                return await self._inner.handle_async_request(pin_to_address(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                last_error = error
        raise last_error or httpx.ConnectError(f"{request.url.host} has no address")

    async def aclose(self) -> None:
        await self._inner.aclose()


async def resolve_allowed(url: httpx.URL, rules: AddressSettings, code: str) -> list[str]:
    """The addresses of a URL's host, if all are allowed. Raises PermanentError(code), TemporaryError when the name does not resolve."""
    if url.scheme != "https" and not (url.scheme == "http" and rules.allow_plain_http):
        raise PermanentError(code, f"{redact_uri(str(url))} is not an https address.")
    port = url.port or (443 if url.scheme == "https" else 80)
    if rules.allowed_ports and port not in rules.allowed_ports:
        raise PermanentError(code, f"{redact_uri(str(url))} names port {port}, which ATELIER_ALLOWED_PORTS does not.")
    if not has_readable_host(url) or url.userinfo:
        raise PermanentError(code, f"{redact_uri(str(url))} names no readable host or port, or a user.")
    addresses = await resolve(url.raw_host.decode("ascii").strip("[]"), port)
    private = [address for address in addresses if not is_public(address)]
    if private and not rules.allow_private_addresses:
        raise PermanentError(
            code, f"{url.host} is {private[0]}, which is not on the public internet. ATELIER_ALLOW_PRIVATE_ADDRESSES lets it through."
        )
    return addresses


def has_readable_host(url: httpx.URL) -> bool:
    """Whether a name of DNS, or an address, and a port can be what the URL names."""
    labels = url.raw_host.decode("ascii").rstrip(".").split(".")
    host, port = readable_host(url), 1 if url.port is None else url.port
    return bool(host) and "%" not in host and 0 < port < 1 << 16 and all(0 < len(label) < 64 for label in labels)


def readable_host(url: httpx.URL | str) -> str:
    """The host in lower case, a name of another script in its characters; "" where there is none, or `xn--…` encodes no name."""
    try:
        return httpx.URL(url).host
    except (httpx.InvalidURL, ValueError):  # idna's errors are of UnicodeError.
        return ""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, IPv4 first."""
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TemporaryError(f"the name {host!r} does not resolve: {error}", code="name-unknown") from error
    ordered = sorted(entries, key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]) for entry in ordered))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet. An IPv6 address that maps or translates an IPv4 address is judged by that."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64_PREFIX else ip.ipv4_mapped
        if inner is not None:
            return is_public(str(inner))
        if ip not in GLOBAL_UNICAST:
            return False
    return ip.is_global and not any(ip in network for network in SPECIAL_NETWORKS)


def has_private_ip_host(url: str) -> bool:
    """Whether a URL's host is an IP address outside the public internet. Resolves no names."""
    try:
        return not is_public(_literal_address(readable_host(url)))
    except ValueError:
        return False


def _literal_address(host: str) -> str:
    """The host as an IP address; also an IPv4 address in the short, octal, hexadecimal or integer form. Raises ValueError for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if not host.isascii() or " " in host:
            raise
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError as error:
        raise ValueError(f"{host!r} is not an address") from error


def url_origin(url: str) -> str:
    """`scheme://host` or `scheme://host:port` of an http or https URL: lower case, without user, path, query. Raises ValueError."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ValueError(f"not a URL: {error}") from error
    host = readable_host(parsed)
    if parsed.scheme not in ("http", "https") or not host or "%" in host:
        raise ValueError("not an address of the form https://host or https://host:port")
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii').lower()}"


def pin_to_address(request: httpx.Request, address: str) -> httpx.Request:
    """The same request to an address instead of a host name, which stays in `Host` and SNI."""
    extensions = {**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii").strip("[]")}
    return httpx.Request(
        request.method, request.url.copy_with(host=address), headers=request.headers, stream=request.stream, extensions=extensions
    )


def describe_http_error(error: Exception) -> str:
    """The kind of an error, and the text of one that concerns the connection alone: others may quote a header, which may hold a token."""
    return f"{type(error).__name__}: {error}" if isinstance(error, httpx.ConnectError) else type(error).__name__
