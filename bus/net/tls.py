"""TLS to broker, database and HTTP servers. TLS_CA_FILE names a private certificate authority; each URL says whether TLS is used."""

import ssl
from pathlib import Path
from urllib.parse import quote

import httpx


def create_ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    """A client context that trusts the public authorities (or those of SSL_CERT_FILE), and `ca_file`."""
    context = httpx.create_ssl_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def with_broker_ca(url: str, ca_file: Path | None) -> str:
    """An `amqps://` URL with `ca_file` as its authority, unless it names one already."""
    return _with_query_parameter(url, "cafile", ca_file) if url.startswith("amqps://") else url


def with_database_ca(url: str, ca_file: Path | None) -> str:
    """A `postgresql://` URL with an `sslmode`, with `ca_file` as its authority, unless it names one already."""
    return _with_query_parameter(url, "sslrootcert", ca_file) if "sslmode=" in url else url


def _with_query_parameter(url: str, name: str, ca_file: Path | None) -> str:
    if ca_file is None or f"{name}=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}{name}={quote(str(ca_file), safe='')}"
