"""TLS towards the other parts. TLS_CA_FILE names a house's own authority; whether a part is spoken to in TLS stands in its address."""

import ssl
from pathlib import Path
from urllib.parse import quote

import httpx


def create_ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    """Whose certificates count: the public authorities (or SSL_CERT_FILE's), and the house's own."""
    context = httpx.create_ssl_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def with_broker_ca(url: str, ca_file: Path | None) -> str:
    """An `amqps://` address that names the authority of the broker's certificate, unless it does so already."""
    return _with_query_parameter(url, "cafile", ca_file) if url.startswith("amqps://") else url


def with_database_ca(url: str, ca_file: Path | None) -> str:
    """The same for a `postgresql://` address that asks for TLS by its `sslmode`."""
    return _with_query_parameter(url, "sslrootcert", ca_file) if "sslmode=" in url else url


def _with_query_parameter(url: str, name: str, ca_file: Path | None) -> str:
    if ca_file is None or f"{name}=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}{name}={quote(str(ca_file), safe='')}"
