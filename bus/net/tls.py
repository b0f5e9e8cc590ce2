"""TLS to broker, database and HTTP servers. TLS_CA_FILE names a private certificate authority; each URL says whether TLS is used."""

import ssl
import sys
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from bus import hidden_package


def create_ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    """A client context that trusts the public authorities (or those of SSL_CERT_FILE), and `ca_file`. It is shared: leave it as it is.

    Reading the public authorities takes 30 ms of processor time, and each download needs a context.
    """
    public = ssl.get_default_verify_paths()  # as SSL_CERT_FILE and SSL_CERT_DIR name them
    files = [Path(file) for file in (ca_file, public.cafile) if file]
    return _read_authorities(ca_file, public, *(file.stat().st_mtime_ns for file in files))


@lru_cache(maxsize=4)
def _read_authorities(ca_file: Path | None, *state: object) -> ssl.SSLContext:
    """`state`: a renewed file, or another environment, gives another context."""
    import httpx  # here, since the settings import this module in every process

    if "httpcore" not in sys.modules:
        with hidden_package("trio"):  # httpx's transport takes it where it is installed: 4 MB for an event loop that nothing here runs
            import httpcore  # noqa: F401
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
