"""Variants: a variant whose validate or judge failed for good is marked failed, whatever the cause: an error, a timeout, a crash, a cancel.

Reads the events of the two steps; which variant a message was at work on is in a table of its own. Whom no message was at work on is
left as it was, so a request that could not be served changes nothing.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from asyncpg import Connection

from actors.vision import variant_repository
from actors.vision.variant_repository import SQL, STAGES
from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.errors import PermanentError
from contracts import broker_names
from contracts.event import Event
from contracts.wire import Result

log = structlog.get_logger()


class VariantMarked(Result):
    """The failure is known to the source system, if it concerns it."""


@asynccontextmanager
async def open_variants(resources: Resources) -> AsyncIterator[Handler]:
    if resources.database is None:
        raise PermanentError("database-missing", "variants are kept in Postgres: set DATABASE_URL")
    yield mark_failed


async def mark_failed(event: Event, context: Context) -> Transactional:
    async def write(connection: Connection) -> None:
        work = event.message_id, STAGES[event.step].name
        await connection.execute(SQL["in_turn"], await connection.fetchval(SQL["work_of"], *work))
        variant = await connection.fetchval(SQL["fail"], *work)
        if variant:
            log.warning("variant.failed", job_variants_id=str(variant), step=event.step, code=event.fault.code if event.fault else None)

    return Transactional(VariantMarked(), write)


ACTOR = Actor(
    step="variants",
    command=Event,
    result=VariantMarked,
    open=open_variants,
    timeout_seconds=30,
    prefetch=16,
    emit_events=False,
    exchange=broker_names.EVENTS_EXCHANGE,
    routing_keys=tuple(f"{step}.{kind}.#" for step in STAGES for kind in ("failed", "cancelled")),
    schema=variant_repository.SCHEMA,
    description="Marks a variant failed when its validate or judge failed for good.",
)
