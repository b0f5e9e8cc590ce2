"""The source pipeline's Postgres notifications: a variant at (img_gen, done) becomes a `validate` command, at (overlay, done) a `judge`.

Reads `job_variant_state_changed` and the table `jobs_variants`; writes nothing there.
"""

from collections.abc import Mapping
from typing import Any

from actors.settings import ListenerSettings
from actors.vision.variant_repository import SCHEMA
from bus.actor import TranslatedCommand
from bus.ids import derived_id, former_id_header, public_id
from bus.sql import load_queries
from bus.worker.pg_listener import PgListener
from contracts.wire import Header, Step

STEP_BY_SOURCE_STEP = {"img_gen": Step.VALIDATE, "overlay": Step.JUDGE}


def translate(row: Mapping[str, Any]) -> TranslatedCommand:
    """The command for a waiting variant. Its message id is derived from the state, so a variant that is set back is processed again."""
    variant, step = str(row["job_variants_id"]), STEP_BY_SOURCE_STEP[row["current_step"]]
    body = {"job_variants_id": variant, "job_id": str(row["job_id"]), "tenant_id": row["tenant_id"], "once": True}
    if row["overlay_id"]:
        body["overlay_id"] = str(row["overlay_id"])
    state = (variant, step, row["updated_at"].isoformat())
    headers = {Header.TENANT.value: row["tenant_id"]} if row["tenant_id"] else {}
    return TranslatedCommand(step, body, derived_id(*state), f"{variant}-{step}", headers | former_id_header(public_id(*state)))


def build_pg_listener(settings: ListenerSettings) -> PgListener:
    return PgListener(
        name="job_variants",
        channel="job_variant_state_changed",
        id_field="job_variants_id",
        due_query=load_queries(__file__, "job_variants.sql")["due"],
        translate=translate,
        schema=SCHEMA,
        sweep_seconds=settings.sweep_seconds,
        reconnect_seconds=settings.reconnect_delay,
    )


def build_adapter() -> PgListener:
    return build_pg_listener(ListenerSettings())
