"""The secret of an installation whose processes are not given one: created in the database at the first start, so that all workers agree.

ATELIER_SECRET is preferred: it reaches the gateway and the adapters as well, which may have no database.
"""

import secrets

import structlog
from asyncpg import Pool

from bus import ids
from bus.retry import retry_while_unavailable
from bus.settings import BusSettings
from bus.sql import load_queries

SQL = load_queries(__file__, "installation_secret.sql")
SCHEMA = SQL["schema"]

log = structlog.get_logger()


def create_secret() -> str:
    """A new secret of 256 random bits, in hex."""
    return secrets.token_hex(32)


async def use_installation_secret(settings: BusSettings, pool: Pool | None) -> None:
    """Key the ids of this process by ATELIER_SECRET, or else by the secret in the database. Without either they can be computed."""
    if settings.secret_text:
        ids.use_secret(settings.secret_text)
    elif pool:
        ids.use_secret(await retry_while_unavailable(lambda: _read_or_create(pool), "database"))
    else:
        warn_without_secret()


def warn_without_secret() -> None:
    log.warning(
        "secret.missing",
        meaning="the ids of messages can be computed by anybody who may publish",
        cure="set ATELIER_SECRET, the same in every process, for example to the output of: openssl rand -hex 32",
    )


async def _read_or_create(pool: Pool) -> str:
    """Of processes that start at the same time, one creates the secret."""
    await pool.execute(SQL["insert"], create_secret())
    return str(await pool.fetchval(SQL["get"]))
