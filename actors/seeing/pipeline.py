"""The source system's tables as the seeing actors use them: variants, their pictures and texts, their states, and what was said of them.

Nothing of theirs is altered but a variant's state; whose message works on which variant is kept in a table of our own.
"""

import hashlib
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from asyncpg import Connection, Pool, Record

from bus.actor import Context, Tools
from bus.errors import PermanentError, TemporaryError
from bus.sql import load_queries

SQL = load_queries(__file__, "pipeline.sql")
SCHEMA = SQL["schema"]


@dataclass(frozen=True)
class Stage:
    """One of the source system's steps. `after`: the step whose `done` is its cue."""

    name: str
    after: str
    operation: str


ANALYZE = Stage("vlm_analyze", "img_gen", "analyze")
JUDGE = Stage("vlm_judge", "overlay", "judge")
STAGES = {"validate": ANALYZE, "judge": JUDGE}


@dataclass(frozen=True)
class Ids:
    """Who a command is about, checked to be what they look like."""

    variant: str
    job: str
    tenant: str

    @classmethod
    def of(cls, variant: str | None, job: str | None, tenant: str | None) -> "Ids":
        """Raises PermanentError("invalid-uuid" · "invalid-message")."""
        if not (variant and job and tenant):
            raise PermanentError("invalid-message", "a variant is named by job_variants_id, job_id and tenant_id together")
        for value in (variant, job):
            try:
                UUID(value)
            except ValueError as error:
                raise PermanentError("invalid-uuid", f"Invalid UUID format: {error}") from error
        return cls(variant, job, tenant)


@dataclass(frozen=True)
class Trace:
    """What goes into `vlm_traces`."""

    request: dict[str, Any]
    response: dict[str, Any]
    latency_ms: float


@dataclass(frozen=True)
class Pipeline:
    pool: Pool
    traces_name_variants: bool

    @classmethod
    async def open(cls, tools: Tools) -> "Pipeline | None":
        """None without a database: then only commands that are complete in themselves can be served."""
        if tools.database is None:
            return None
        return cls(tools.database, await tools.database.fetchval(SQL["traces_name_variants"]))

    async def variant(self, ids: Ids) -> Record:
        """Raises PermanentError("variant-unknown" · "job-mismatch" · "job-not-found" · "tenant-mismatch"), in the source system's words."""
        row = await self.pool.fetchrow(SQL["variant"], ids.variant)
        if row is None:
            raise PermanentError("variant-unknown", f"Job variant not found: {ids.variant}")
        if row["job_id"] != UUID(ids.job):
            raise PermanentError("job-mismatch", "Job variant job_id mismatch")
        if not row["has_job"]:
            raise PermanentError("job-not-found", f"Job not found: {ids.job}")
        if row["tenant_id"] != ids.tenant:
            raise PermanentError("tenant-mismatch", "Job tenant_id mismatch")
        return row

    async def asset_url(self, asset_id: UUID | None) -> str:
        """Raises PermanentError("asset-absent" · "asset-unknown")."""
        if asset_id is None:
            raise PermanentError("asset-absent", "Image asset ID not found in job variant")
        url: str | None = await self.pool.fetchval(SQL["asset"], asset_id)
        if not url:
            raise PermanentError("asset-unknown", f"Image asset not found: {asset_id}")
        return url

    async def ad_copy(self, ids: Ids) -> str | None:
        text: str | None = await self.pool.fetchval(SQL["ad_copy"], ids.job)
        return text

    async def layout(self, overlay_id: str) -> Record | None:
        """Raises PermanentError("invalid-uuid")."""
        try:
            UUID(overlay_id)
        except ValueError as error:
            raise PermanentError("invalid-uuid", f"Invalid UUID format: {error}") from error
        return await self.pool.fetchrow(SQL["layout"], overlay_id)

    async def layout_of_variant(self, ids: Ids) -> Record | None:
        return await self.pool.fetchrow(SQL["layout_of_variant"], ids.variant)

    async def claim(self, stage: Stage, ids: Ids, context: Context) -> None:
        """Note whose message works on the variant."""
        await self.pool.execute(SQL["claim_work"], context.message_id, stage.name, ids.variant)

    async def at_work(self, stage: Stage, context: Context) -> bool:
        """Whether this very message began on the variant before: it comes again after a failure or a crash."""
        return bool(await self.pool.fetchval(SQL["working"], context.message_id, stage.name))

    async def start(self, stage: Stage, ids: Ids, context: Context, *, once: bool = False) -> None:
        """The variant runs from now on, for this message. `once`: only from the state that is its cue; else TemporaryError."""
        async with self.pool.acquire() as connection, connection.transaction():
            if not once:
                await connection.execute(SQL["start"], ids.variant, stage.name)
            elif not await connection.fetchval(SQL["start_once"], ids.variant, stage.name, stage.after):
                raise TemporaryError(f"another message has taken variant {ids.variant} meanwhile", delay=30)
            await connection.execute(SQL["claim_work"], context.message_id, stage.name, ids.variant)

    async def finish(self, connection: Connection, stage: Stage, ids: Ids, context: Context, trace: Trace) -> None:
        """The trace and the variant's `done`, in the caller's transaction."""
        who: tuple[Any, ...] = (trace_id(context.message_id), ids.job)
        request = {name: value.replace("\0", "") if isinstance(value, str) else value for name, value in trace.request.items()}
        what = (stage.operation, request, trace.response, trace.latency_ms)
        if self.traces_name_variants:
            await connection.execute(SQL["trace"], *who, ids.variant, *what)
        else:
            await connection.execute(SQL["trace_without_variant"], *who, *what)
        await connection.execute(SQL["in_turn"], ids.variant)
        await connection.execute(SQL["finish"], ids.variant, stage.name)

    async def earlier(self, stage: Stage, ids: Ids, variant: Record) -> dict[str, Any] | None:
        """For a command that is to be done once: the verdict that there is already; None when the variant waits for one.

        Raises TemporaryError while another message works on it, PermanentError("variant-moved-on") when it is elsewhere, unjudged.
        """
        state = (variant["current_step"], variant["status"])
        if state == (stage.after, "done"):
            return None
        row = await self.pool.fetchrow(SQL["earlier"], ids.variant, stage.name)
        if row:
            return dict(row["response"]) | {"vlm_trace_id": str(row["vlm_trace_id"])}
        if state == (stage.name, "running"):
            raise TemporaryError(f"another message works on variant {ids.variant}", delay=30)
        raise PermanentError(
            "variant-moved-on", f"variant {ids.variant} is at {state[0]}, {state[1]}; {stage.name} follows {stage.after}, done"
        )


def trace_id(message_id: str) -> str:
    """The id of the trace that a message leaves. The query `earlier` computes the same."""
    return str(UUID(hashlib.md5(f"vlm_trace/{message_id}".encode(), usedforsecurity=False).hexdigest()))
