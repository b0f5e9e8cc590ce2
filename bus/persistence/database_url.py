"""The form of DATABASE_URL and DATABASE_DIRECT_URL: what the driver would misread, or wait for without end, is refused with its cure.

Pure, but for the files of certificates, which are looked for. No message quotes a part of the URL that may be secret.
"""

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

import certifi

EXAMPLE = "write postgresql://user:password@host:5432/database"
ESCAPES = "in user and password write `#` as %23, `/` as %2F, `?` as %3F, `@` as %40, `:` as %3A, `[` as %5B and `%` as %25"
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
PUBLIC_AUTHORITIES = "system"
"""libpq's word for them, in place of the file of an authority."""
CERTIFICATE_OPTIONS = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
DRIVER_OPTIONS = frozenset({
    *CERTIFICATE_OPTIONS,
    *("host", "port", "user", "password", "dbname", "database", "passfile", "service", "sslmode", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib"),
})  # fmt: skip
"""Those that asyncpg reads; it sends every other one to the server, as a parameter of the session."""
CONNECT_TIMEOUT = "connect_timeout"
REMOVE_POOL_OPTION = "remove it: the pool's size is DATABASE_POOL_SIZE"
REMOVE_POOLER_OPTION = "remove it: a pooler is recognised without it; see DATABASE_DIRECT_URL"
REMOVE_SOCKET_OPTION = "remove it: a connection that does not respond is found and replaced without it"
USE_SSLMODE = "write sslmode=require, or sslmode=verify-full"
FOREIGN_OPTIONS: Mapping[str, str] = {
    "schema": "remove it: our tables are in the schema atelier, which every statement names",
    "currentSchema": "remove it: our tables are in the schema atelier, which every statement names",
    "pgbouncer": REMOVE_POOLER_OPTION,
    "prepared_statements": REMOVE_POOLER_OPTION,
    "prepareThreshold": REMOVE_POOLER_OPTION,
    "statement_cache_size": REMOVE_POOLER_OPTION,
    "prepared_statement_cache_size": REMOVE_POOLER_OPTION,
    "workaround": REMOVE_POOLER_OPTION,
    "connection_limit": REMOVE_POOL_OPTION,
    "pool_timeout": REMOVE_POOL_OPTION,
    "pool_size": REMOVE_POOL_OPTION,
    "max_connections": REMOVE_POOL_OPTION,
    "pool_max_conns": REMOVE_POOL_OPTION,
    "socket_timeout": REMOVE_SOCKET_OPTION,
    "command_timeout": REMOVE_SOCKET_OPTION,
    "keepalives": REMOVE_SOCKET_OPTION,
    "keepalives_idle": REMOVE_SOCKET_OPTION,
    "keepalives_interval": REMOVE_SOCKET_OPTION,
    "keepalives_count": REMOVE_SOCKET_OPTION,
    "tcp_user_timeout": REMOVE_SOCKET_OPTION,
    "ssl": USE_SSLMODE,
    "sslaccept": USE_SSLMODE,
    "useSSL": USE_SSLMODE,
    "tls": USE_SSLMODE,
    "requiressl": USE_SSLMODE,
    "sslidentity": "write sslcert=… and sslkey=…, files in PEM",
    "uselibpqcompat": "remove it, and write sslmode=verify-full for a server whose certificate must be verified",
    "channel_binding": "remove it: the driver has no channel binding; sslmode=verify-full proves who the server is",
    "gssencmode": "remove it: the driver encrypts with TLS only",
    "sslcompression": "remove it: TLS is not compressed",
    "load_balance_hosts": "remove it: the hosts are tried in their order",
    "fallback_application_name": "write application_name",
    "charset": "remove it: text is always sent as UTF-8",
    "encoding": "remove it: text is always sent as UTF-8",
    "client_encoding": "remove it: text is always sent as UTF-8",
    "serverTimezone": "remove it: times are stored with their time zone",
}
"""Options that other drivers read, with what to do instead."""


def check_database_url(url: str) -> str:
    """The URL without white space around it. Raises ValueError for one that leads to no PostgreSQL server."""
    url = url.strip()
    _check_scheme(url)
    parts = _split(url)
    if "#" in url:
        raise ValueError(f"it has the character `#`, at which a URL ends: {ESCAPES}")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    if "@" in userinfo or ("@" in parts.path and not userinfo) or re.search(r"%(?![0-9A-Fa-f]{2})", userinfo):
        raise ValueError(f"user or password has a character that is not escaped: {ESCAPES}")
    for host in hosts.split(",") if hosts else ():
        _check_port(host, userinfo)
    _check_options(parts.query)
    return url


def _check_scheme(url: str) -> None:
    scheme, separator, _ = url.partition(":")
    if scheme in ("postgresql", "postgres") and url.startswith(f"{scheme}://"):
        return
    if url[:1] in "\"'" and url:
        raise ValueError(f"it begins with a quotation mark, which belongs to the shell: {EXAMPLE}, without quotation marks")
    if re.match(r"\w+\s*=", url):
        raise ValueError(f"words such as host=… are not read: {EXAMPLE}")
    if scheme.partition("+")[0] in ("postgresql", "postgres", "psql") and "+" in scheme:
        raise ValueError(f"`+{scheme.partition('+')[2]}` names a driver for SQLAlchemy: {EXAMPLE}, without it")
    if scheme == "jdbc":
        raise ValueError(f"`jdbc:` is the form of Java: {EXAMPLE}, without it")
    named = f"its scheme is `{scheme}`" if separator and re.fullmatch(r"[a-z][a-z0-9+.-]{0,30}", scheme) else "it has no scheme"
    raise ValueError(f"{named}, and the database must be PostgreSQL: {EXAMPLE}")


def _split(url: str) -> SplitResult:
    """Raises ValueError without the URL in its message, as urllib's own may have."""
    try:
        return urlsplit(url)
    except ValueError:
        raise ValueError(f"it is no URL: {ESCAPES}; an IPv6 address stands in [ ]") from None


def _check_port(host: str, userinfo: str) -> None:
    _, separator, port = host.rpartition(":")
    if not separator or host.endswith("]") or (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        return
    if userinfo:
        raise ValueError(f"the port of a host is no number from 1 to 65535: {EXAMPLE}")
    raise ValueError(f"the part after the first `:` is no port, so a character in the password is not escaped: {ESCAPES}")


def _check_options(query: str) -> None:
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ValueError(f"the part after `?` is not of the form name=value&name=value; {ESCAPES}") from None
    for name, value in options.items():
        if cure := FOREIGN_OPTIONS.get(name):
            raise ValueError(f"the option `{name}` belongs to another driver: {cure}")
        if not re.fullmatch(r"[A-Za-z_][\w.]{0,62}", name):
            raise ValueError(f"an option after `?` has no valid name; {ESCAPES}")
        if name == CONNECT_TIMEOUT and not re.fullmatch(r"\d{1,5}", value):
            raise ValueError("connect_timeout is a number of seconds")
        if name == "sslmode" and value not in SSL_MODES:
            raise ValueError(f"sslmode is one of {', '.join(SSL_MODES)}")


def options_of(url: str) -> dict[str, str]:
    """The options after `?`."""
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


def session_parameters(url: str) -> list[str]:
    """The names of the parameters of the session that the URL sets, by an option of their own or inside of `options`."""
    options = {name: value for name, value in options_of(url).items() if name not in DRIVER_OPTIONS and name != CONNECT_TIMEOUT}
    inside = re.findall(r"(?:^|\s)(?:-c\s*|--)([\w.-]+)=", options.pop("options", ""))
    return [*options, *(name.replace("-", "_") for name in inside)]


def hosts_of(url: str) -> str:
    """The hosts of a URL with their ports, for messages: `a:5432, b:5432`."""
    parts = urlsplit(url)
    hosts = options_of(url).get("host") or unquote(parts.netloc.rpartition("@")[2])
    return hosts.replace(",", ", ") or "the local socket"


def password_of(url: str) -> str | None:
    """The password as it is written in the URL."""
    userinfo, separator, _ = urlsplit(url).netloc.rpartition("@")
    return userinfo.partition(":")[2] or None if separator else None


def without_connect_timeout(url: str, default_seconds: float) -> tuple[str, float]:
    """The URL as the driver reads it, and how long to wait for a connection. 0 means no limit to libpq, here the default."""
    options = options_of(url)
    seconds = float(options.pop(CONNECT_TIMEOUT, 0)) or default_seconds
    if options.get("sslrootcert") == PUBLIC_AUTHORITIES:
        options["sslrootcert"] = certifi.where()
    base = url.partition("?")[0]
    return (f"{base}?{urlencode(options, quote_via=quote)}" if options else base), seconds


def check_certificate_files(url: str) -> None:
    """Raises ValueError for a file that is missing, that may not be read, or that holds nothing in PEM that the driver can use."""
    options = options_of(url)
    files = {name: options[name] for name in CERTIFICATE_OPTIONS if options.get(name, PUBLIC_AUTHORITIES) != PUBLIC_AUTHORITIES}
    for name, file in files.items():
        try:
            if not Path(file).is_file():
                raise ValueError(f"the file of {name}, {file}, is missing: mount it, or correct its path")
            _load(name, file, files.get("sslcert"), options.get("sslpassword", ""))
        except PermissionError:
            raise ValueError(f"the file of {name}, {file}, may not be read: give the user of this process the right to") from None
        except ssl.SSLError as error:
            contents = "a key in PEM that belongs to sslcert, with its sslpassword" if name == "sslkey" else "certificates in PEM"
            raise ValueError(f"the file of {name}, {file}, cannot be used ({error.reason}): it must hold {contents}") from None


def _load(name: str, file: str, certificate: str | None, password: str) -> None:
    """Raises OSError, and SSLError for a file that the driver would not load. A key without a certificate is not used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if name != "sslkey":
        context.load_verify_locations(cafile=file)
    elif certificate:
        context.load_cert_chain(certificate, file, password=password)
