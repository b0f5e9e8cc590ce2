"""Variants: marks a variant failed when its validate or judge step failed for good: by an error, a timeout, a crash or a cancellation.

Reads the events of the two steps; the table `atelier.variant_work` has the variant that each message works on. A variant that no message
works on is not changed, so a request that was refused changes nothing; nor is one of another tenant than the event's.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from asyncpg import Connection

from actors.vision import variant_repository
from actors.vision.variant_repository import SQL, STAGES
from bus.actor import Actor, Context, Handler, Resources, Transactional
from contracts import broker_names
from contracts.event import Event
from contracts.wire import Result

log = structlog.get_logger()


class VariantMarked(Result):
    """The variant of the failed message, if there is one, is marked failed."""


@asynccontextmanager
async def open_variants(resources: Resources) -> AsyncIterator[Handler]:
    resources.require_database("variants are kept in Postgres: set DATABASE_URL")
    yield mark_failed


async def mark_failed(event: Event, context: Context) -> Transactional:
    async def write(connection: Connection) -> None:
        key = event.message_id, STAGES[event.step].name
        await connection.execute(SQL["lock_job"], await connection.fetchval(SQL["owned_variant"], *key))
        variant = await connection.fetchval(SQL["fail"], *key, event.tenant)
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
    description="Marks a variant failed when its validate or judge step failed for good.",
)
