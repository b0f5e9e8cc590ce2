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

from actors.seeing import pipeline
from actors.seeing.pictures import Pictures
from actors.seeing.pipeline import ANALYZE, Ids, Pipeline, Trace, trace_id
from actors.seeing.prompts import validate_text
from actors.seeing.settings import SeeingSettings, VlmSettings
from actors.seeing.sight import open_sight
from actors.seeing.verdicts import Critic, fields_of, in_source_words
from bus.actor import Actor, Context, Handler, Tools, Transactional
from bus.errors import PermanentError
from contracts.validate import Validate, ValidateDone
from contracts.verdict import ImageOpinion
from contracts.wire import Step


@asynccontextmanager
async def open_validate(tools: Tools) -> AsyncIterator[Handler]:
    settings = SeeingSettings()
    async with open_sight(VlmSettings.of(Step.VALIDATE), tools.unready) as sight:
        tools.show(sight.engine)
        critic = Critic(sight, Pictures(tools.claims, settings), settings)
        yield partial(validate, critic=critic, tables=await Pipeline.open(tools))


ACTOR = Actor(
    step=Step.VALIDATE,
    command=Validate,
    result=ValidateDone,
    open=open_validate,
    timeout_seconds=900,
    prefetch=8,
    schema=pipeline.SCHEMA,
    description="Judges whether a picture suits its advertisement.",
)


async def validate(command: Validate, context: Context, *, critic: Critic, tables: Pipeline | None) -> ValidateDone | Transactional:
    if command.job_variants_id:
        if tables is None:
            raise PermanentError("database-missing", "a variant is looked up in Postgres: set DATABASE_URL, or send a claim and a text")
        return await validate_variant(command, context, critic, tables)
    claim = command.image or next(iter(command.images), None)
    if claim is None:
        raise PermanentError("invalid-message", "neither ids nor a picture: send job_variants_id, job_id and tenant_id, or image")
    picture = await critic.pictures.of_claim(claim)
    said = await opinion(command, command.ad_copy_text, picture, context, critic)
    return ValidateDone(job_id=command.job_id or context.job_id, **said)


async def validate_variant(command: Validate, context: Context, critic: Critic, tables: Pipeline) -> ValidateDone | Transactional:
    """All is looked up and loaded first, so that a request that cannot be served leaves the variant as it was."""
    ids = Ids.of(command.job_variants_id, command.job_id, command.tenant_id)
    variant = await tables.variant(ids)
    once = command.once and not await tables.at_work(ANALYZE, context)
    if once and (verdict := await tables.earlier(ANALYZE, ids, variant)):
        return ValidateDone(job_id=ids.job, **verdict)
    url = await tables.asset_url(variant["img_asset_id"])
    ad_copy = command.ad_copy_text or await tables.ad_copy(ids)
    with in_source_words(url):
        picture = await critic.pictures.of_address(url)
    await tables.start(ANALYZE, ids, context, once=once)

    started = time.perf_counter()
    said = await opinion(command, ad_copy, picture, context, critic)
    request = {"asset_url": url, "ad_copy_text": ad_copy, "prompt": command.prompt, "image_asset_id": str(variant["img_asset_id"])}
    trace = Trace(request, said, round((time.perf_counter() - started) * 1000, 1))

    async def write(connection: Connection) -> None:
        await tables.finish(connection, ANALYZE, ids, context, trace)

    return Transactional(ValidateDone(job_id=ids.job, vlm_trace_id=trace_id(context.message_id), **said), write)


async def opinion(command: Validate, ad_copy: str | None, picture: Image.Image, context: Context, critic: Critic) -> dict[str, Any]:
    """The model's verdict as the result's fields."""
    verdict = await critic.verdict(ImageOpinion, validate_text(ad_copy, command.prompt), picture, context)
    return fields_of(verdict)
