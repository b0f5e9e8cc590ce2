"""SSRF protection: which addresses are public, and that the connection goes to the checked address."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bus.errors import PermanentError, TemporaryError
from bus.net.settings import AddressSettings
from bus.net.ssrf import GuardedTransport, has_private_ip_host, is_public, resolve_allowed, url_origin
from tests.support.webhook_backend import WebhookBackend, open_webhook_backend

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200",
    "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "168.63.129.16",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1",
    "192.0.0.1", "192.0.0.8", "192.0.0.9", "192.0.0.170", "192.0.0.192", "192.88.99.1", "198.51.100.7", "203.0.113.7", "239.1.1.1",
    "100::1", "100:0:0:1::1", "64:ff9b:1::808:808", "2001::1", "2001:1::1", "2001:2::1", "2001:20::1", "2001:1ff::1", "2002:808:808::1",
    "3fff::1", "3fff:fff::1", "4000::1", "5f00::1", "fec0::1", "feff::1", "ff0e::1", "::ffff:192.0.0.192", "64:ff9b::c000:c0",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_non_public_address_is_detected(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "2606:4700:4700::1111",
        "2001:4860:4860::8888",
        "2a00:1450::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "192.0.1.1",
        "192.88.98.1",
    ],
)
def test_public_address_is_detected(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/x", "https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://localhost/", "https://[::1]/",
        "https://[::ffff:169.254.169.254]/", "http://8.8.8.8/", "ftp://8.8.8.8/", "https://user:word@8.8.8.8/", "https:///x", "//8.8.8.8/",
    ],
)  # fmt: skip
async def test_non_public_url_is_rejected(url: str) -> None:
    with pytest.raises(PermanentError) as error:
        await resolve_allowed(httpx.URL(url), AddressSettings(), "refused-here")
    assert error.value.code == "refused-here"


async def test_only_allowed_ports_are_called() -> None:
    rules = AddressSettings(allowed_ports=(443, 8443))
    assert await resolve_allowed(httpx.URL("https://8.8.8.8:8443/"), rules, "x") == ["8.8.8.8"]
    assert await resolve_allowed(httpx.URL("https://8.8.8.8/"), rules, "x") == ["8.8.8.8"]
    with pytest.raises(PermanentError):
        await resolve_allowed(httpx.URL("https://8.8.8.8:22/"), rules, "x")


async def test_port_list_is_read_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_PORTS", "443, 8443")
    assert AddressSettings().allowed_ports == (443, 8443)


async def test_any_private_address_rejects_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dns(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(PermanentError):
        await resolve_allowed(httpx.URL("https://mixed.example/"), AddressSettings(), "x")


async def test_unresolvable_name_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dns(monkeypatch)
    with pytest.raises(TemporaryError):
        await resolve_allowed(httpx.URL("https://nowhere.example/"), AddressSettings(), "x")


def fake_dns(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Resolve every name to these addresses. Returns the names that were resolved."""
    resolved: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        resolved.append(host)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return resolved


def self_signed_certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for a host name: its file, and the context of a server that presents it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    signed = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False).sign(key, hashes.SHA256())
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / f"{name}.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context


@pytest.fixture
async def tls_backend(tmp_path: Path) -> AsyncIterator[tuple[WebhookBackend, int, ssl.SSLContext]]:
    """An https server for good.example, its port, and a client context that trusts it."""
    file, context = self_signed_certificate(tmp_path, "good.example")
    backend = WebhookBackend()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield backend, server.sockets[0].getsockname()[1], ssl.create_default_context(cafile=str(file))


async def test_connection_uses_checked_address_and_verifies_hostname(
    tls_backend: tuple[WebhookBackend, int, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, port, trust = tls_backend
    resolved = fake_dns(monkeypatch, "127.0.0.1")
    transport = GuardedTransport(AddressSettings(allow_private_addresses=True), "x", verify=trust)
    async with httpx.AsyncClient(transport=transport) as client:
        assert (await client.get(f"https://good.example:{port}/a?b=c")).status_code == 200
        assert resolved == ["good.example"]
        assert (backend.requests[0].path, backend.requests[0].headers["host"]) == ("/a?b=c", f"good.example:{port}")
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await client.get(f"https://other.example:{port}/")
    assert len(backend.requests) == 1


@pytest.fixture
async def http_backend() -> AsyncIterator[WebhookBackend]:
    async with open_webhook_backend() as backend:
        yield backend


async def test_next_address_is_tried_when_connection_fails(http_backend: WebhookBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dns(monkeypatch, "127.0.0.77", "127.0.0.1")
    rules = AddressSettings(allow_private_addresses=True, allow_plain_http=True)
    async with httpx.AsyncClient(transport=GuardedTransport(rules, "x")) as client:
        assert (await client.get(http_backend.url.replace("127.0.0.1", "good.example"))).status_code == 200


async def test_every_redirect_hop_is_checked(http_backend: WebhookBackend) -> None:
    """A client that follows redirects cannot be redirected to a refused URL."""
    http_backend.responses = [(302, {"Location": "http://127.0.0.1:22/"})]
    port = httpx.URL(http_backend.url).port
    assert port
    rules = AddressSettings(allow_private_addresses=True, allow_plain_http=True, allowed_ports=(port,))
    async with httpx.AsyncClient(transport=GuardedTransport(rules, "x"), follow_redirects=True) as client:
        with pytest.raises(PermanentError, match="port 22"):
            await client.get(http_backend.url)
    assert len(http_backend.requests) == 1


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("http://10.0.0.1:8000/x", True),
        ("https://[::1]", True),
        ("https://8.8.8.8", False),
        ("https://localhost", False),
        ("", False),
        ("https://[", False),
        ("http://0x7f000001/", True),
        ("http://2130706433/", True),
        ("http://0x7f.1/", True),
        ("http://0177.0.0.1/", False),  # not a URL for httpx, so no request can go there
        ("http://127.1/", True),
        ("http://0x8080808/", False),
        ("http://a.b/", False),
    ],
)
def test_private_ip_literal_is_detected_without_dns(url: str, private: bool) -> None:
    assert has_private_ip_host(url) is private


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Backend.Example/any/path?x=1#y", "https://backend.example"),
        ("HTTPS://user:word@backend.example:8443/x", "https://backend.example:8443"),
        ("http://backend.example:80/", "http://backend.example"),
        ("https://bücher.example/x", "https://xn--bcher-kva.example"),
        ("https://[2001:DB8::1]:8000/x", "https://[2001:db8::1]:8000"),
        ("https://backend.example/api/webhooks/generation/7/status", "https://backend.example"),
        (r"https://backend.example\@other.example/", "https://other.example"),
        ("https://backend.example@other.example/", "https://other.example"),
        ("ftp://backend.example", None),
        ("backend.example", None),
        ("//backend.example/x", None),
        ("https:///x", None),
        ("https://[fe80::1%25eth0]/", None),
        ("https://xn--a/", None),
        ("", None),
    ],
)
def test_url_is_reduced_to_its_origin(url: str, origin: str | None) -> None:
    if origin is None:
        with pytest.raises(ValueError):
            url_origin(url)
    else:
        assert url_origin(url) == origin
