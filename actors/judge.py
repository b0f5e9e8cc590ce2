"""Judge (stage 2): may the finished advertisement go out? The model's opinion, and what can be measured beside it.

By ids: the variant must be at (overlay, done); reads the overlaid picture and its layout, sets the variant running, then done together
with the trace. Complete in itself: reads a claim and the regions given. A disagreement of opinion and evidence is an issue.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Connection, Record
from PIL import Image

from actors.vision import variant_repository
from actors.vision.evidence import find_disagreements, measure_evidence
from actors.vision.image_loader import ImageLoader
from actors.vision.overlay_layout import OverlayLayout, parse_layout
from actors.vision.prompts import JUDGE_PROMPT
from actors.vision.settings import VisionSettings, VlmSettings
from actors.vision.variant_repository import JUDGE, VariantRef, VariantRepository, VlmTrace, derive_trace_id
from actors.vision.verdict_service import VerdictService, translate_image_errors, verdict_fields
from actors.vision.vlm_client import open_vlm_client
from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.errors import PermanentError
from contracts.judge import Judge, JudgeDone
from contracts.verdict import AdVerdictSchema
from contracts.wire import Step


@asynccontextmanager
async def open_judge(resources: Resources) -> AsyncIterator[Handler]:
    settings = VisionSettings()
    async with open_vlm_client(VlmSettings.for_step(Step.JUDGE), resources.set_unready) as sight:
        resources.register_engine(sight.engine)
        critic = VerdictService(sight, ImageLoader(resources.claims, settings), settings)
        yield partial(judge, verdicts=critic, repository=await VariantRepository.open(resources))


ACTOR = Actor(
    step=Step.JUDGE,
    command=Judge,
    result=JudgeDone,
    open=open_judge,
    timeout_seconds=900,
    prefetch=8,
    schema=variant_repository.SCHEMA,
    description="Judges a finished advertisement.",
)


async def judge(
    command: Judge, context: Context, *, verdicts: VerdictService, repository: VariantRepository | None
) -> JudgeDone | Transactional:
    if command.job_variants_id:
        if repository is None:
            raise PermanentError("database-missing", "a variant is looked up in Postgres: set DATABASE_URL, or send a claim")
        return await judge_variant(command, context, verdicts, repository)
    claim = command.image or next(iter(command.images), None)
    if claim is None:
        raise PermanentError("invalid-message", "neither ids nor a picture: send job_variants_id, job_id and tenant_id, or image")
    picture = await verdicts.image_loader.from_claim(claim)
    said = await evaluate(command, OverlayLayout(), picture, await load_bare_image(command, None, verdicts), context, verdicts)
    return JudgeDone(job_id=command.job_id or context.job_id, **said)


async def judge_variant(
    command: Judge, context: Context, verdicts: VerdictService, repository: VariantRepository
) -> JudgeDone | Transactional:
    """Every failure from here on fails the variant, as in the source system: the message is noted as being at work first."""
    ids = VariantRef.parse(command.job_variants_id, command.job_id, command.tenant_id)
    variant = await repository.get_variant(ids)
    again = await repository.is_owner(JUDGE, context)
    if command.once and not again and (verdict := await repository.find_earlier_verdict(JUDGE, ids, variant)):
        return JudgeDone(job_id=ids.job_id, **verdict)
    await repository.record_owner(JUDGE, ids, context)
    check_variant_state(variant, again)
    layout = await find_layout(command, ids, repository)
    url = await resolve_image_url(command, variant, layout, repository)
    with translate_image_errors(url):
        picture = await verdicts.image_loader.from_url(url)
    await repository.mark_running(JUDGE, ids, context, once=command.once and not again)

    started = time.perf_counter()
    bare = await load_bare_image(command, await resolve_bare_image_url(variant, repository), verdicts)
    said = await evaluate(command, layout or OverlayLayout(), picture, bare, context, verdicts)
    trace = VlmTrace({"render_asset_url": url, "overlay_id": command.overlay_id}, said, round((time.perf_counter() - started) * 1000, 1))

    async def write(connection: Connection) -> None:
        await repository.mark_done(connection, JUDGE, ids, context, trace)

    return Transactional(JudgeDone(job_id=ids.job_id, vlm_trace_id=derive_trace_id(context.message_id), **said), write)


def check_variant_state(variant: Record, redelivered: bool) -> None:
    """Raises PermanentError("not-overlaid"). A message that began before finds the state that it left itself."""
    state = (variant["current_step"], variant["status"])
    ours = redelivered and state[0] == JUDGE.name and state[1] in ("running", "failed")
    if state != (JUDGE.preceding_step, "done") and not ours:
        message = f"judge는 (overlay, done) 상태에서만 실행됩니다. 현재: current_step={state[0]}, status={state[1]}"
        raise PermanentError("not-overlaid", message)


async def find_layout(command: Judge, ref: VariantRef, repository: VariantRepository) -> OverlayLayout | None:
    """The layout that the command names, which must be there, else the variant's last. Raises PermanentError("overlay-unknown")."""
    if not command.overlay_id:
        return parse_layout(await repository.get_latest_layout(ref))
    row = await repository.get_layout(command.overlay_id)
    if row is None and not command.render_asset_url:
        raise PermanentError("overlay-unknown", f"Overlay layout not found: {command.overlay_id}")
    return parse_layout(row)


async def resolve_image_url(command: Judge, variant: Record, layout: OverlayLayout | None, repository: VariantRepository) -> str:
    """From the command, else the overlaid asset, else the layout. Raises PermanentError("render-absent" · "picture-unnamed")."""
    if command.render_asset_url:
        return command.render_asset_url
    if variant["overlaid_img_asset_id"]:
        return await repository.get_asset_url(variant["overlaid_img_asset_id"])
    if layout and layout.render_url:
        return layout.render_url
    if layout:
        raise PermanentError("render-absent", "Render URL not found in overlay layout")
    raise PermanentError("picture-unnamed", "render_asset_url, overlaid_img_asset_id, overlay_id 중 하나가 필요합니다.")


async def resolve_bare_image_url(variant: Record, repository: VariantRepository) -> str | None:
    """Where the picture without its text lies, if anywhere."""
    return await repository.get_asset_url(variant["img_asset_id"]) if variant["img_asset_id"] and variant["overlaid_img_asset_id"] else None


async def load_bare_image(command: Judge, url: str | None, verdicts: VerdictService) -> Image.Image | None:
    """Only for the evidence: where it cannot be had, less is measured."""
    if not command.protected_region:
        return None
    try:
        if command.bare_image:
            return await verdicts.image_loader.from_claim(command.bare_image)
        return await verdicts.image_loader.from_url(url) if url else None
    except PermanentError:
        return None


async def evaluate(
    command: Judge, layout: OverlayLayout, picture: Image.Image, bare: Image.Image | None, context: Context, verdicts: VerdictService
) -> dict[str, Any]:
    """The verdict and the evidence as the result's fields."""
    verdict = await verdicts.evaluate(AdVerdictSchema, JUDGE_PROMPT, picture, context)
    evidence = measure_evidence(
        picture,
        text_region=command.text_region or layout.region,
        text_color=command.text_color or layout.text_color,
        large_text=command.large_text or layout.large_text,
        protected=command.protected_region,
        bare=bare,
    )
    said = verdict_fields(verdict)
    issues = [*verdict.opinion.issues, *find_disagreements(verdict.opinion, evidence)]
    return said | {"issues": issues, "evidence": evidence.model_dump(mode="json", exclude_none=True)}
