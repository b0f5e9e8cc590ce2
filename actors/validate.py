"""Validate (stage 1): does a picture suit its advertisement?

By ids: reads the variant's picture and text from the source system's tables, sets the variant running, then done together with the trace.
Complete in itself: reads a claim and a text. Returns the verdict.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Connection
from PIL import Image

from actors.vision import variant_repository
from actors.vision.image_loader import ImageLoader
from actors.vision.prompts import build_validate_prompt
from actors.vision.settings import VisionSettings, VlmSettings
from actors.vision.variant_repository import ANALYZE, VariantRef, VariantRepository, VlmTrace, derive_trace_id
from actors.vision.verdict_service import VerdictService, translate_image_errors, verdict_fields
from actors.vision.vlm_client import open_vlm_client
from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.errors import PermanentError
from contracts.validate import Validate, ValidateDone
from contracts.verdict import ImageVerdictSchema
from contracts.wire import Step


@asynccontextmanager
async def open_validate(resources: Resources) -> AsyncIterator[Handler]:
    settings = VisionSettings()
    async with open_vlm_client(VlmSettings.for_step(Step.VALIDATE), resources.set_unready) as sight:
        resources.register_engine(sight.engine)
        critic = VerdictService(sight, ImageLoader(resources.claims, settings), settings)
        yield partial(validate, verdicts=critic, repository=await VariantRepository.open(resources))


ACTOR = Actor(
    step=Step.VALIDATE,
    command=Validate,
    result=ValidateDone,
    open=open_validate,
    timeout_seconds=900,
    prefetch=8,
    schema=variant_repository.SCHEMA,
    description="Judges whether a picture suits its advertisement.",
)


async def validate(
    command: Validate, context: Context, *, verdicts: VerdictService, repository: VariantRepository | None
) -> ValidateDone | Transactional:
    if command.job_variants_id:
        if repository is None:
            raise PermanentError("database-missing", "a variant is looked up in Postgres: set DATABASE_URL, or send a claim and a text")
        return await validate_variant(command, context, verdicts, repository)
    claim = command.image or next(iter(command.images), None)
    if claim is None:
        raise PermanentError("invalid-message", "neither ids nor a picture: send job_variants_id, job_id and tenant_id, or image")
    picture = await verdicts.image_loader.from_claim(claim)
    said = await evaluate(command, command.ad_copy_text, picture, context, verdicts)
    return ValidateDone(job_id=command.job_id or context.job_id, **said)


async def validate_variant(
    command: Validate, context: Context, verdicts: VerdictService, repository: VariantRepository
) -> ValidateDone | Transactional:
    """All is looked up and loaded first, so that a request that cannot be served leaves the variant as it was."""
    ids = VariantRef.parse(command.job_variants_id, command.job_id, command.tenant_id)
    variant = await repository.get_variant(ids)
    once = command.once and not await repository.is_owner(ANALYZE, context)
    if once and (verdict := await repository.find_earlier_verdict(ANALYZE, ids, variant)):
        return ValidateDone(job_id=ids.job_id, **verdict)
    url = await repository.get_asset_url(variant["img_asset_id"])
    ad_copy = command.ad_copy_text or await repository.get_ad_copy(ids)
    with translate_image_errors(url):
        picture = await verdicts.image_loader.from_url(url)
    await repository.mark_running(ANALYZE, ids, context, once=once)

    started = time.perf_counter()
    said = await evaluate(command, ad_copy, picture, context, verdicts)
    request = {"asset_url": url, "ad_copy_text": ad_copy, "prompt": command.prompt, "image_asset_id": str(variant["img_asset_id"])}
    trace = VlmTrace(request, said, round((time.perf_counter() - started) * 1000, 1))

    async def write(connection: Connection) -> None:
        await repository.mark_done(connection, ANALYZE, ids, context, trace)

    return Transactional(ValidateDone(job_id=ids.job_id, vlm_trace_id=derive_trace_id(context.message_id), **said), write)


async def evaluate(
    command: Validate, ad_copy: str | None, picture: Image.Image, context: Context, verdicts: VerdictService
) -> dict[str, Any]:
    """The model's verdict as the result's fields."""
    verdict = await verdicts.evaluate(ImageVerdictSchema, build_validate_prompt(ad_copy, command.prompt), picture, context)
    return verdict_fields(verdict)
