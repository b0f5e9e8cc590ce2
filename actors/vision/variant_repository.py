"""The source system's tables for the vision actors: variants, their pictures, texts and layouts, their states, and traces of verdicts.

Only a variant's state is changed, and traces are added; which message works on which variant is in our own table `atelier.variant_work`.
"""

import hashlib
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from asyncpg import Connection, Pool, Record

from actors.vision.overlay_layout import parse_layout
from bus.actor import Context, Resources
from bus.errors import PermanentError, TemporaryError
from bus.sql import load_queries

SQL = load_queries(__file__, "variant_repository.sql")
SCHEMA = SQL["schema"]


@dataclass(frozen=True)
class Stage:
    """A step of the source system. `preceding_step`: the step that must be done before it."""

    name: str
    preceding_step: str
    operation: str


ANALYZE = Stage("vlm_analyze", "img_gen", "analyze")
JUDGE = Stage("vlm_judge", "overlay", "judge")
STAGES = {"validate": ANALYZE, "judge": JUDGE}


@dataclass(frozen=True)
class VariantRef:
    """The variant, job and tenant of a command, checked for their form. `acting_tenant`: the delivery's; None for the installation's."""

    variant_id: str
    job_id: str
    tenant_id: str
    acting_tenant: str | None = None

    @classmethod
    def parse(cls, variant_id: str | None, job_id: str | None, tenant_id: str | None, context: Context) -> "VariantRef":
        """Raises PermanentError("invalid-uuid" · "invalid-message" · "tenant-foreign")."""
        tenant_id = context.resolve_tenant(tenant_id)
        if not (variant_id and job_id and tenant_id):
            raise PermanentError("invalid-message", "a variant is named by job_variants_id, job_id and tenant_id together")
        check_uuid(variant_id)
        check_uuid(job_id)
        return cls(variant_id, job_id, tenant_id, context.tenant)


@dataclass(frozen=True)
class VlmTrace:
    """A row of `vlm_traces`."""

    request: dict[str, Any]
    response: dict[str, Any]
    latency_ms: float


@dataclass(frozen=True)
class VariantRepository:
    """`traces_have_variant`: whether `vlm_traces` has the column `job_variants_id`."""

    pool: Pool
    traces_have_variant: bool

    @classmethod
    async def open(cls, resources: Resources) -> "VariantRepository | None":
        """None without a database: then only commands without ids can be served."""
        if resources.database is None:
            return None
        return cls(resources.database, await resources.database.fetchval(SQL["traces_have_variant"]))

    async def get_variant(self, ref: VariantRef) -> Record:
        """For a tenant, another one's variant is unknown.

        Raises PermanentError("variant-unknown" · "job-mismatch" · "job-not-found" · "tenant-mismatch"), in the source system's words.
        """
        row = await find_variant(self.pool, ref.variant_id, ref.acting_tenant)
        if row["job_id"] != UUID(ref.job_id):
            raise PermanentError("job-mismatch", "Job variant job_id mismatch")
        if not row["has_job"]:
            raise PermanentError("job-not-found", f"Job not found: {ref.job_id}")
        if row["tenant_id"] != ref.tenant_id:
            raise PermanentError("tenant-mismatch", "Job tenant_id mismatch")
        return row

    async def get_asset_url(self, asset_id: UUID | None) -> str:
        """Raises PermanentError("asset-absent" · "asset-unknown")."""
        if asset_id is None:
            raise PermanentError("asset-absent", "Image asset ID not found in job variant")
        url: str | None = await self.pool.fetchval(SQL["asset"], asset_id)
        if not url:
            raise PermanentError("asset-unknown", f"Image asset not found: {asset_id}")
        return url

    async def get_ad_copy(self, ref: VariantRef) -> str | None:
        text: str | None = await self.pool.fetchval(SQL["ad_copy"], ref.job_id)
        return text

    async def get_layout(self, overlay_id: str, ref: VariantRef) -> Record | None:
        """A layout of the variant. Raises PermanentError("invalid-uuid")."""
        check_uuid(overlay_id)
        return await self.pool.fetchrow(SQL["layout"], overlay_id, ref.variant_id)

    async def list_addresses(self, ref: VariantRef) -> set[str | None]:
        """The addresses that are recorded for the variant: of its pictures and of its rendered layouts."""
        assets = {row["image_url"] for row in await self.pool.fetch(SQL["assets_of_variant"], ref.variant_id)}
        layouts = map(parse_layout, await self.pool.fetch(SQL["layouts_of_variant"], ref.variant_id))
        return assets | {layout.render_url for layout in layouts if layout}

    async def get_latest_layout(self, ref: VariantRef) -> Record | None:
        return await self.pool.fetchrow(SQL["layout_of_variant"], ref.variant_id)

    async def record_owner(self, stage: Stage, ref: VariantRef, context: Context) -> None:
        """Record that this message works on the variant."""
        await self.pool.execute(SQL["record_owner"], context.keyed_id, stage.name, ref.variant_id)

    async def is_owner(self, stage: Stage, context: Context) -> bool:
        """Whether this message has worked on a variant before: it is delivered again after a failure or a crash."""
        return bool(await self.pool.fetchval(SQL["is_owner"], context.keyed_id, stage.name))

    async def mark_running(self, stage: Stage, ref: VariantRef, context: Context, *, once: bool = False) -> None:
        """Mark the variant running for this message. `once`: raises TemporaryError unless the preceding step is done."""
        async with self.pool.acquire() as connection, connection.transaction():
            if not once:
                await connection.execute(SQL["start"], ref.variant_id, stage.name)
            elif not await connection.fetchval(SQL["start_once"], ref.variant_id, stage.name, stage.preceding_step):
                raise TemporaryError(f"another message works on variant {ref.variant_id} meanwhile", delay=30)
            await connection.execute(SQL["record_owner"], context.keyed_id, stage.name, ref.variant_id)

    async def mark_done(self, connection: Connection, stage: Stage, ref: VariantRef, context: Context, trace: VlmTrace) -> None:
        """Store the trace and mark the variant done, in the caller's transaction."""
        ids: tuple[Any, ...] = (derive_trace_id(context.keyed_id), ref.job_id)
        request = {name: value.replace("\0", "") if isinstance(value, str) else value for name, value in trace.request.items()}
        values = (stage.operation, request, trace.response, trace.latency_ms)
        if self.traces_have_variant:
            await connection.execute(SQL["trace"], *ids, ref.variant_id, *values)
        else:
            await connection.execute(SQL["trace_without_variant"], *ids, *values)
        await connection.execute(SQL["lock_job"], ref.variant_id)
        await connection.execute(SQL["finish"], ref.variant_id, stage.name)

    async def find_earlier_verdict(self, stage: Stage, ref: VariantRef, variant: Record) -> dict[str, Any] | None:
        """For a command that runs once: the existing verdict; None when the variant still needs one.

        Raises TemporaryError while another message works on it, PermanentError("variant-moved-on") in another state without a verdict.
        """
        state = (variant["current_step"], variant["status"])
        if state == (stage.preceding_step, "done"):
            return None
        row = await self.pool.fetchrow(SQL["earlier_verdict"], ref.variant_id, stage.name)
        if row:
            return dict(row["response"]) | {"vlm_trace_id": str(row["vlm_trace_id"])}
        if state == (stage.name, "running"):
            raise TemporaryError(f"another message works on variant {ref.variant_id}", delay=30)
        raise PermanentError(
            "variant-moved-on", f"variant {ref.variant_id} is at {state[0]}, {state[1]}; {stage.name} follows {stage.preceding_step}, done"
        )


async def find_variant(pool: Pool, variant_id: str, tenant: str | None) -> Record:
    """A variant of the tenant; for the installation (None), of any. Raises PermanentError("variant-unknown")."""
    row = await pool.fetchrow(SQL["variant"], variant_id, tenant)
    if row is None:
        raise PermanentError("variant-unknown", f"Job variant not found: {variant_id}")
    return row


def check_uuid(value: str) -> None:
    try:
        UUID(value)
    except ValueError as error:
        raise PermanentError("invalid-uuid", f"Invalid UUID format: {error}") from error


def derive_trace_id(message_id: str) -> str:
    """The id of the trace of a message. The query `earlier_verdict` computes the same."""
    return str(UUID(hashlib.md5(f"vlm_trace/{message_id}".encode(), usedforsecurity=False).hexdigest()))
