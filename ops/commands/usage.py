"""`atelier usage`: busy time of the devices by tenant and step, from the events in the ledger.

DATABASE_URL names the database; without it the local one of `atelier up` is used.
"""

import asyncio
import json
import sys
from argparse import Namespace
from datetime import datetime
from typing import Any

import asyncpg

from actors.ledger import SQL
from bus.observability.logs import configure_logging
from bus.persistence.pool import open_pool
from bus.settings import BusSettings
from ops.commands.dead_letter_handlers import service_urls
from ops.commands.time_arguments import parse_time
from ops.errors import SetupError


def usage_command(arguments: Namespace) -> int:
    configure_logging("WARNING")
    rows = asyncio.run(read_usage(parse_time(arguments.since) if arguments.since else None, arguments.tenant))
    total = sum(row["device_seconds"] for row in rows)
    if arguments.json:
        sys.stdout.write(json.dumps({"usage": rows, "device_seconds": total}, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(format_usage(rows, total) + "\n")
    return 0


async def read_usage(since: datetime | None, tenant: str | None) -> list[dict[str, Any]]:
    """One row for each tenant and step. Raises SetupError where no ledger has run."""
    async with service_urls(needs_broker=False) as (amqp_url, database_url):
        settings = BusSettings.model_validate({"amqp_url": amqp_url, "database_url": database_url})
        async with open_pool(settings) as pool:
            assert pool is not None
            try:
                return [dict(record.items()) for record in await pool.fetch(SQL["usage"], since, tenant)]
            except asyncpg.UndefinedTableError as error:
                raise SetupError("the database has no ledger: start its actor with `atelier run ledger`, or `atelier up`") from error


def format_usage(rows: list[dict[str, Any]], total: float) -> str:
    if not rows:
        return "No device time is recorded."
    cells = [(row["tenant"] or "-", row["step"], row["device_seconds"], f"  {row['runs']:>8,} runs") for row in rows]
    cells.append(("total", "", total, ""))
    width = max(len(tenant) for tenant, *_ in cells)
    return "\n".join(f"{tenant:<{width}}  {step:<12}  {seconds:>12,.3f} s{runs}" for tenant, step, seconds, runs in cells)
