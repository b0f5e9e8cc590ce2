"""The database at the start of a process: what waiting cannot cure is an error with its cause and cure, anything else is waited for.

A pooler in transaction mode, such as PgBouncer, is recognised by what it does: two clients get the same session of the server.
"""

import socket
import ssl
from dataclasses import dataclass, field

import asyncpg
import structlog

from bus.errors import PermanentError
from bus.persistence.database_url import (
    check_certificate_files,
    hosts_of,
    session_parameters,
    without_connect_timeout,
)
from bus.retry import UNAVAILABLE, retry_while_unavailable
from bus.settings import BusSettings

CONNECT_TIMEOUT_SECONDS = 10.0
CHECK_TIMEOUT_SECONDS = 10.0
SHARING_ROUNDS = 5
"""Rounds of the search for a shared session. An idle pooler is found in the first, in whatever order it gives out its sessions."""
OLDEST_SERVER = 130_000
DIRECT_URL_CURE = (
    "set DATABASE_DIRECT_URL to a URL of the server itself, or a pooler in session mode, for the connections that hold session locks and "
    "LISTEN; DATABASE_URL stays as it is"
)
IDENTITY = "select pg_backend_pid()"
FACTS = """
select current_setting('server_version_num')::integer as version, current_setting('server_encoding') as encoding,
    current_setting('transaction_read_only') = 'on' as read_only, current_setting('synchronous_commit') = 'off' as loses_commits,
    concat_ws(' ', pg_postmaster_start_time(), (select oid from pg_database where datname = current_database())) as identity
"""
IGNORED_PARAMETERS = """
select name from pg_settings
where lower(name) = any($1::text[]) and source not in ('client', 'session')
    and name not in ('application_name', 'DateStyle', 'IntervalStyle', 'TimeZone', 'standard_conforming_strings')
"""
"""Without those that a pooler sets itself, and only where its session has another value; `role` is no entry of the view."""
OTHER_DATABASE = "DATABASE_DIRECT_URL leads to another database than DATABASE_URL: both must name the same one, the first without pooler"
CREDENTIALS_CURE = "correct user and password; special characters of the password are escaped in a URL, as %23 for `#`"
POOLER_REFUSALS = {
    "unsupported startup parameter": "a pooler refuses an option of the URL: remove the option, and set it with `alter role … set …`",
    "no such database": "the pooler knows no such database: correct the name at the end of the URL, or the pooler's [databases]",
    "no such user": "the pooler knows no such user: correct the user in the URL, or the pooler's auth_file",
    "SASL authentication failed": CREDENTIALS_CURE,
    "password authentication failed": CREDENTIALS_CURE,
    "SSL required": "the pooler requires TLS: add sslmode=require, or sslmode=verify-full",
    "statement pooling mode": "a pooler in statement mode allows no transactions: set its pool_mode to transaction or session",
}
"""Errors of PgBouncer, which have the SQLSTATE of a lost connection, by a part of their text."""

log = structlog.get_logger()


class DatabaseAway(ConnectionError):
    """The database cannot be reached now. The message names setting and hosts."""


@dataclass(frozen=True)
class DatabaseServer:
    """Where a setting leads. `shares_sessions`: a pooler in transaction mode, which gives each transaction another session.

    `identity`: of the database, the same for every way to it until its server starts again.
    """

    setting: str
    url: str = field(repr=False)
    shares_sessions: bool = False
    identity: str = ""


async def find_database(settings: BusSettings) -> DatabaseServer | None:
    """The server of DATABASE_URL, None without it. Waits while it is away; raises PermanentError for what waiting cannot cure."""
    return await wait_for_server("DATABASE_URL", url) if (url := settings.postgres_url) else None


async def find_session_database(settings: BusSettings, database: DatabaseServer) -> DatabaseServer:
    """The server for connections that hold locks: that of DATABASE_DIRECT_URL, else of DATABASE_URL.

    Raises PermanentError("database-pooler") for a pooler in transaction mode, where a session lock protects nothing.
    """
    direct_url = settings.direct_postgres_url
    server = await wait_for_server("DATABASE_DIRECT_URL", direct_url) if direct_url else database
    require_own_sessions(server)
    return server


def require_own_sessions(server: DatabaseServer) -> None:
    """Raises PermanentError("database-pooler")."""
    if server.shares_sessions:
        meaning = "leads to a pooler in transaction mode, as PgBouncer's pool_mode=transaction, where session locks and LISTEN mean nothing"
        raise PermanentError("database-pooler", f"{server.setting}: {hosts_of(server.url)} {meaning}: {DIRECT_URL_CURE}")


async def wait_for_server(setting: str, url: str) -> DatabaseServer:
    """Examine the server, again while it is away."""
    return await retry_while_unavailable(lambda: examine_server(setting, url), "database")


async def examine_server(setting: str, url: str) -> DatabaseServer:
    """Raises PermanentError("database-refused") for what waiting cannot cure, DatabaseAway for anything else."""
    try:
        check_certificate_files(url)
        first, second = await connect(url), None
        try:
            identity = await check_facts(first, url)
            second = await connect(url)
            shares_sessions = await share_session(first, second)
        finally:
            for connection in (first, second):
                if connection is not None:
                    connection.terminate()
        return DatabaseServer(setting, url, shares_sessions, identity)
    except PermanentError as error:
        raise PermanentError(error.code, f"{setting}: {error}") from None
    except (*UNAVAILABLE, asyncpg.PostgresError, ValueError) as error:
        if cure := describe_refusal(error):
            raise PermanentError("database-refused", f"{setting}: {cure}") from None
        raise DatabaseAway(f"{setting}: {hosts_of(url)}: {describe_absence(error)}") from None


async def connect(url: str) -> asyncpg.Connection:
    """A connection for a check, without prepared statements."""
    dsn, seconds = without_connect_timeout(url, CONNECT_TIMEOUT_SECONDS)
    return await asyncpg.connect(dsn, timeout=seconds, command_timeout=CHECK_TIMEOUT_SECONDS, statement_cache_size=0)


async def check_facts(connection: asyncpg.Connection, url: str) -> str:
    """The database's identity. Raises PermanentError("database-unsuitable") for one that cannot serve, or ignores a part of its URL."""
    facts = await connection.fetchrow(FACTS)
    problem = None
    if facts["version"] < OLDEST_SERVER:
        problem = f"PostgreSQL {facts['version'] // 10_000} is too old: PostgreSQL 13 or newer is needed"
    elif facts["encoding"] not in ("UTF8", "SQL_ASCII"):
        problem = (
            f"the database has the encoding {facts['encoding']}, which cannot hold every text: create one with "
            "`create database … encoding 'UTF8' template template0`"
        )
    elif facts["read_only"]:
        problem = "the server is read-only, as a replica is: name the primary, or several hosts and target_session_attrs=read-write"
    elif (names := session_parameters(url)) and (ignored := await connection.fetchval(IGNORED_PARAMETERS, [*map(str.lower, names)])):
        problem = f"a pooler ignores the option {ignored} of the URL: remove it, and set it with `alter role … set …`"
    if problem:
        raise PermanentError("database-unsuitable", f"{hosts_of(url)}: {problem}")
    if facts["encoding"] == "SQL_ASCII":
        log.warning("database.encoding", meaning="the database has the encoding SQL_ASCII: lengths are counted in bytes", cure="use UTF8")
    if facts["loses_commits"]:
        log.warning("database.synchronous_commit_off", meaning="a crash of the server loses results and dead letters of its last moment")
    return str(facts["identity"])


async def share_session(first: asyncpg.Connection, second: asyncpg.Connection) -> bool:
    """Whether two clients get the same session of the server, or one client gets another one.

    Nothing is held meanwhile: of many processes that start at once behind a few sessions, each would wait for what another one holds.
    """
    async with second.transaction():  # a pooler of single statements refuses it
        await second.fetchval(IDENTITY)
    for _ in range(SHARING_ROUNDS):
        session = await first.fetchval(IDENTITY)
        if await first.fetchval(IDENTITY) != session or await second.fetchval(IDENTITY) == session:
            return True
    return False


def describe_refusal(error: BaseException) -> str | None:
    """Cause and cure of an error that waiting cannot cure; None for one of a server that is away."""
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        cure = "set TLS_CA_FILE or sslrootcert to its authority, and name the host as the certificate does"
        return f"the server's certificate is not accepted ({error.verify_message}): {cure}"
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in text:
        return "the server has no TLS, which sslmode requires: enable TLS in the server, or write sslmode=disable in a trusted network"
    if isinstance(error, asyncpg.PostgresError) and (known := next((part for part in POOLER_REFUSALS if part in text), None)):
        return f"{text}: {POOLER_REFUSALS[known]}"
    if isinstance(error, asyncpg.InvalidPasswordError):
        return f"{text}: {CREDENTIALS_CURE}"
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return f"{text}: correct the user, add sslmode=require where the server asks for encryption, or allow the user in pg_hba.conf"
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return f"{text}: correct the name at the end of the URL, or create that database"
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return f"{text}: grant it to the user of the URL"
    if isinstance(error, asyncpg.SyntaxOrAccessError | asyncpg.InvalidParameterValueError | asyncpg.CantChangeRuntimeParamError):
        return f"{text}: the server refuses an option after `?`: remove it from the URL, or correct it"
    if isinstance(error, asyncpg.ClientConfigurationError) and "root certificate" in text:
        return f"{text}: set TLS_CA_FILE, or add sslrootcert=/path/of/authority.pem, or sslrootcert=system for the public authorities"
    if isinstance(error, asyncpg.UnsupportedClientFeatureError | asyncpg.FeatureNotSupportedError | ValueError):
        return text
    if isinstance(error, asyncpg.InterfaceError) and "authentication method" in text:
        return f"{text}: let the server ask for a password with scram-sha-256"
    return None


def describe_absence(error: BaseException) -> str:
    """Why a server that is away cannot be reached, for a log."""
    if isinstance(error, socket.gaierror):
        return f"the host name cannot be resolved ({error.strerror})"
    if isinstance(error, TimeoutError):
        return "no response in time"
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "no host has the property that target_session_attrs asks for"
    return f"{type(error).__name__}: {error}"
