"""Validate (stage 1): does a picture suit its advertisement?

With ids: reads the picture and text of the tenant's variant from the source system's tables; marks the variant running, then done together
with the trace. Without ids: reads a claim and a text. Returns the verdict.
"""

from typing import Any

from PIL import Image

from actors.vision import variant_repository
from actors.vision.prompts import build_validate_prompt
from actors.vision.variant_repository import ANALYZE, VariantRef, VariantRepository
from actors.vision.verdict_service import (
    IMAGE_DEFAULT,
    VerdictService,
    evaluate_variant,
    require_repository,
    select_claim,
    translate_image_errors,
    verdict_fields,
    with_verdicts,
)
from bus.actor import Actor, Context, Transactional
from contracts.validate import Validate, ValidateDone
from contracts.verdict import ImageAnswer, ImageVerdictSchema
from contracts.wire import Step


async def validate(
    command: Validate, context: Context, *, verdicts: VerdictService, repository: VariantRepository | None
) -> ValidateDone | Transactional:
    """Raises PermanentError("tenant-foreign") when the body names another tenant than the delivery."""
    context.resolve_tenant(command.tenant_id)
    if command.job_variants_id:
        return await validate_variant(command, context, verdicts, require_repository(repository, "a claim and a text"))
    picture = await verdicts.image_loader.from_claim(select_claim(command.image, command.images), tenant=context.tenant)
    fields = await evaluate(command, command.ad_copy_text, picture, context, verdicts)
    return ValidateDone(job_id=command.job_id or context.job_id, **fields)


ACTOR = Actor(
    step=Step.VALIDATE,
    command=Validate,
    result=ValidateDone,
    open=with_verdicts(Step.VALIDATE, validate),
    timeout_seconds=900,
    prefetch=8,
    schema=variant_repository.SCHEMA,
    description="Judges whether a picture suits its advertisement.",
)


async def validate_variant(
    command: Validate, context: Context, verdicts: VerdictService, repository: VariantRepository
) -> ValidateDone | Transactional:
    """Everything is looked up and loaded before the variant changes, so a request that is refused leaves it unchanged."""
    ref = VariantRef.parse(command.job_variants_id, command.job_id, command.tenant_id, context)
    variant = await repository.get_variant(ref)
    once = command.once and not await repository.is_owner(ANALYZE, context)
    if once and (verdict := await repository.find_earlier_verdict(ANALYZE, ref, variant)):
        return ValidateDone(job_id=ref.job_id, **verdict)
    url = await repository.get_asset_url(variant["img_asset_id"])
    ad_copy = command.ad_copy_text or await repository.get_ad_copy(ref)
    with translate_image_errors(url):
        picture = await verdicts.image_loader.from_url(url, tenant=context.tenant)
    await repository.mark_running(ANALYZE, ref, context, once=once)
    request = {"asset_url": url, "ad_copy_text": ad_copy, "prompt": command.prompt, "image_asset_id": str(variant["img_asset_id"])}
    evaluation = evaluate(command, ad_copy, picture, context, verdicts)
    return await evaluate_variant(evaluation, request, ValidateDone, repository=repository, stage=ANALYZE, ref=ref, context=context)


async def evaluate(
    command: Validate, ad_copy: str | None, picture: Image.Image, context: Context, verdicts: VerdictService
) -> dict[str, Any]:
    """The model's verdict as the result's fields."""
    prompt = build_validate_prompt(ad_copy, command.prompt)
    default = IMAGE_DEFAULT if command.default_verdict else None
    verdict = await verdicts.evaluate(ImageAnswer, prompt, picture, context, schema=ImageVerdictSchema, default=default)
    return verdict_fields(verdict)
