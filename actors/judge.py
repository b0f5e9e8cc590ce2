"""Judge (stage 2): is the finished advertisement fit for publication? Combines the model's opinion with measured evidence.

With ids: the variant must be at (overlay, done); reads the overlaid picture and its layout; marks the variant running, then done together
with the trace. Without ids: reads a claim and the given regions. A contradiction between opinion and evidence is an issue of the verdict.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Record
from PIL import Image

from actors.vision import variant_repository
from actors.vision.evidence import find_disagreements, measure_evidence
from actors.vision.ocr import TextReader, open_text_reader
from actors.vision.ocr_settings import OcrSettings
from actors.vision.overlay_layout import OverlayLayout, parse_layout
from actors.vision.prompts import JUDGE_PROMPT
from actors.vision.variant_repository import JUDGE, VariantRef, VariantRepository
from actors.vision.verdict_service import (
    AD_DEFAULT,
    VerdictService,
    evaluate_variant,
    require_repository,
    select_claim,
    translate_image_errors,
    verdict_fields,
    with_verdicts,
)
from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.errors import PermanentError
from contracts.judge import Judge, JudgeDone
from contracts.verdict import AdVerdictSchema
from contracts.wire import Step


@asynccontextmanager
async def open_judge(resources: Resources) -> AsyncIterator[Handler]:
    async with open_text_reader(OcrSettings()) as reader, with_verdicts(Step.JUDGE, partial(judge, reader=reader))(resources) as handler:
        yield handler


async def judge(
    command: Judge, context: Context, *, verdicts: VerdictService, repository: VariantRepository | None, reader: TextReader | None
) -> JudgeDone | Transactional:
    """`reader`: None without the extra `ocr`.

    Raises PermanentError("tenant-foreign") when the body names another tenant than the delivery.
    """
    context.resolve_tenant(command.tenant_id)
    if command.job_variants_id:
        return await judge_variant(command, context, verdicts, require_repository(repository, "a claim"), reader)
    picture = await verdicts.image_loader.from_claim(select_claim(command.image, command.images), tenant=context.tenant)
    fields = await evaluate(command, OverlayLayout(), picture, None, context, verdicts, reader)
    return JudgeDone(job_id=command.job_id or context.job_id, **fields)


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


async def judge_variant(
    command: Judge, context: Context, verdicts: VerdictService, repository: VariantRepository, reader: TextReader | None
) -> JudgeDone | Transactional:
    """As in the source system, a failure fails the variant, so the message is recorded as its owner first; not for what is refused."""
    ref = VariantRef.parse(command.job_variants_id, command.job_id, command.tenant_id, context)
    variant = await repository.get_variant(ref)
    redelivered = await repository.is_owner(JUDGE, context)
    once = command.once and not redelivered
    if once and (verdict := await repository.find_earlier_verdict(JUDGE, ref, variant)):
        return JudgeDone(job_id=ref.job_id, **verdict)
    await check_render_address(command, ref, repository)
    await repository.record_owner(JUDGE, ref, context)
    check_variant_state(variant, redelivered)
    layout = await find_layout(command, ref, repository)
    url = await resolve_image_url(command, variant, layout, repository)
    with translate_image_errors(url):
        picture = await verdicts.image_loader.from_url(url, tenant=context.tenant)
    await repository.mark_running(JUDGE, ref, context, once=once)
    request = {"render_asset_url": url, "overlay_id": command.overlay_id}
    bare_url = await resolve_bare_image_url(variant, repository)
    evaluation = evaluate(command, layout or OverlayLayout(), picture, bare_url, context, verdicts, reader)
    return await evaluate_variant(evaluation, request, JudgeDone, repository=repository, stage=JUDGE, ref=ref, context=context)


def check_variant_state(variant: Record, redelivered: bool) -> None:
    """Raises PermanentError("not-overlaid"). A redelivered message finds the state that it set itself."""
    state = (variant["current_step"], variant["status"])
    own_state = redelivered and state[0] == JUDGE.name and state[1] in ("running", "failed")
    if state != (JUDGE.preceding_step, "done") and not own_state:
        message = f"judge는 (overlay, done) 상태에서만 실행됩니다. 현재: current_step={state[0]}, status={state[1]}"
        raise PermanentError("not-overlaid", message)


async def check_render_address(command: Judge, ref: VariantRef, repository: VariantRepository) -> None:
    """A tenant may name only an address of its variant. Raises PermanentError("render-foreign")."""
    address = command.render_asset_url
    if address and ref.acting_tenant and address not in await repository.list_addresses(ref):
        message = (
            f"render_asset_url is not recorded for the variant {ref.variant_id}: name its overlaid asset or a rendered layout, or neither"
        )
        raise PermanentError("render-foreign", message)


async def find_layout(command: Judge, ref: VariantRef, repository: VariantRepository) -> OverlayLayout | None:
    """The variant's layout that the command names, else its latest. Raises PermanentError("overlay-unknown")."""
    if not command.overlay_id:
        return parse_layout(await repository.get_latest_layout(ref))
    row = await repository.get_layout(command.overlay_id, ref)
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
    """The address of the picture without its text, if there is one."""
    return await repository.get_asset_url(variant["img_asset_id"]) if variant["img_asset_id"] and variant["overlaid_img_asset_id"] else None


async def load_bare_image(command: Judge, url: str | None, verdicts: VerdictService, context: Context) -> Image.Image | None:
    """The picture without its text. Used only for the evidence: None when it is not needed or cannot be loaded."""
    if not command.protected_region:
        return None
    try:
        if command.bare_image:
            return await verdicts.image_loader.from_claim(command.bare_image, tenant=context.tenant)
        return await verdicts.image_loader.from_url(url, tenant=context.tenant) if url else None
    except PermanentError:
        return None


async def evaluate(
    command: Judge,
    layout: OverlayLayout,
    picture: Image.Image,
    bare_url: str | None,
    context: Context,
    verdicts: VerdictService,
    reader: TextReader | None,
) -> dict[str, Any]:
    """The verdict and the evidence as the result's fields."""
    bare = await load_bare_image(command, bare_url, verdicts, context)
    default = AD_DEFAULT if command.default_verdict else None
    verdict = await verdicts.evaluate(AdVerdictSchema, JUDGE_PROMPT, picture, context, default=default)
    text_region = command.text_region or layout.region
    measured = measure_evidence(
        picture,
        text_region=text_region,
        text_color=command.text_color or layout.text_color,
        large_text=command.large_text or layout.large_text,
        protected=command.protected_region,
        bare=bare,
    )
    read = await reader.measure(picture, command.ad_copy_text or layout.text, text_region) if reader else {}
    evidence = measured.model_copy(update=read)
    fields = verdict_fields(verdict)
    disagreements = find_disagreements(verdict.opinion, evidence) if verdict.opinion else []
    issues = [*fields["issues"], *disagreements]
    return fields | {"issues": issues, "evidence": evidence.model_dump(mode="json", exclude_none=True)}
