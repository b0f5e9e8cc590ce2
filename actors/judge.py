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

from actors.seeing import pipeline
from actors.seeing.evidence import disagreements, gather
from actors.seeing.layout import Layout, layout_of
from actors.seeing.pictures import Pictures
from actors.seeing.pipeline import JUDGE, Ids, Pipeline, Trace, trace_id
from actors.seeing.prompts import JUDGE_TEXT
from actors.seeing.settings import SeeingSettings, VlmSettings
from actors.seeing.sight import open_sight
from actors.seeing.verdicts import Critic, fields_of, in_source_words
from bus.actor import Actor, Context, Handler, Tools, Transactional
from bus.errors import PermanentError
from contracts.judge import Judge, JudgeDone
from contracts.verdict import AdOpinion
from contracts.wire import Step


@asynccontextmanager
async def open_judge(tools: Tools) -> AsyncIterator[Handler]:
    settings = SeeingSettings()
    async with open_sight(VlmSettings.of(Step.JUDGE), tools.unready) as sight:
        tools.show(sight.engine)
        critic = Critic(sight, Pictures(tools.claims, settings), settings)
        yield partial(judge, critic=critic, tables=await Pipeline.open(tools))


ACTOR = Actor(
    step=Step.JUDGE,
    command=Judge,
    result=JudgeDone,
    open=open_judge,
    timeout_seconds=900,
    prefetch=8,
    schema=pipeline.SCHEMA,
    description="Judges a finished advertisement.",
)


async def judge(command: Judge, context: Context, *, critic: Critic, tables: Pipeline | None) -> JudgeDone | Transactional:
    if command.job_variants_id:
        if tables is None:
            raise PermanentError("database-missing", "a variant is looked up in Postgres: set DATABASE_URL, or send a claim")
        return await judge_variant(command, context, critic, tables)
    claim = command.image or next(iter(command.images), None)
    if claim is None:
        raise PermanentError("invalid-message", "neither ids nor a picture: send job_variants_id, job_id and tenant_id, or image")
    picture = await critic.pictures.of_claim(claim)
    said = await opinion(command, Layout(), picture, await bare_picture(command, None, critic), context, critic)
    return JudgeDone(job_id=command.job_id or context.job_id, **said)


async def judge_variant(command: Judge, context: Context, critic: Critic, tables: Pipeline) -> JudgeDone | Transactional:
    """Every failure from here on fails the variant, as in the source system: the message is noted as being at work first."""
    ids = Ids.of(command.job_variants_id, command.job_id, command.tenant_id)
    variant = await tables.variant(ids)
    again = await tables.at_work(JUDGE, context)
    if command.once and not again and (verdict := await tables.earlier(JUDGE, ids, variant)):
        return JudgeDone(job_id=ids.job, **verdict)
    await tables.claim(JUDGE, ids, context)
    check_state(variant, again)
    layout = await find_layout(command, ids, tables)
    url = await address(command, variant, layout, tables)
    with in_source_words(url):
        picture = await critic.pictures.of_address(url)
    await tables.start(JUDGE, ids, context, once=command.once and not again)

    started = time.perf_counter()
    bare = await bare_picture(command, await bare_address(variant, tables), critic)
    said = await opinion(command, layout or Layout(), picture, bare, context, critic)
    trace = Trace({"render_asset_url": url, "overlay_id": command.overlay_id}, said, round((time.perf_counter() - started) * 1000, 1))

    async def write(connection: Connection) -> None:
        await tables.finish(connection, JUDGE, ids, context, trace)

    return Transactional(JudgeDone(job_id=ids.job, vlm_trace_id=trace_id(context.message_id), **said), write)


def check_state(variant: Record, again: bool) -> None:
    """Raises PermanentError("not-overlaid"). A message that began before finds the state that it left itself."""
    state = (variant["current_step"], variant["status"])
    ours = again and state[0] == JUDGE.name and state[1] in ("running", "failed")
    if state != (JUDGE.after, "done") and not ours:
        message = f"judge는 (overlay, done) 상태에서만 실행됩니다. 현재: current_step={state[0]}, status={state[1]}"
        raise PermanentError("not-overlaid", message)


async def find_layout(command: Judge, ids: Ids, tables: Pipeline) -> Layout | None:
    """The layout that the command names, which must be there, else the variant's last. Raises PermanentError("overlay-unknown")."""
    if not command.overlay_id:
        return layout_of(await tables.layout_of_variant(ids))
    row = await tables.layout(command.overlay_id)
    if row is None and not command.render_asset_url:
        raise PermanentError("overlay-unknown", f"Overlay layout not found: {command.overlay_id}")
    return layout_of(row)


async def address(command: Judge, variant: Record, layout: Layout | None, tables: Pipeline) -> str:
    """From the command, else the overlaid asset, else the layout. Raises PermanentError("render-absent" · "picture-unnamed")."""
    if command.render_asset_url:
        return command.render_asset_url
    if variant["overlaid_img_asset_id"]:
        return await tables.asset_url(variant["overlaid_img_asset_id"])
    if layout and layout.render_url:
        return layout.render_url
    if layout:
        raise PermanentError("render-absent", "Render URL not found in overlay layout")
    raise PermanentError("picture-unnamed", "render_asset_url, overlaid_img_asset_id, overlay_id 중 하나가 필요합니다.")


async def bare_address(variant: Record, tables: Pipeline) -> str | None:
    """Where the picture without its text lies, if anywhere."""
    return await tables.asset_url(variant["img_asset_id"]) if variant["img_asset_id"] and variant["overlaid_img_asset_id"] else None


async def bare_picture(command: Judge, url: str | None, critic: Critic) -> Image.Image | None:
    """Only for the evidence: where it cannot be had, less is measured."""
    if not command.protected_region:
        return None
    try:
        if command.bare_image:
            return await critic.pictures.of_claim(command.bare_image)
        return await critic.pictures.of_address(url) if url else None
    except PermanentError:
        return None


async def opinion(
    command: Judge, layout: Layout, picture: Image.Image, bare: Image.Image | None, context: Context, critic: Critic
) -> dict[str, Any]:
    """The verdict and the evidence as the result's fields."""
    verdict = await critic.verdict(AdOpinion, JUDGE_TEXT, picture, context)
    evidence = gather(
        picture,
        text_region=command.text_region or layout.region,
        text_color=command.text_color or layout.text_color,
        large_text=command.large_text or layout.large_text,
        protected=command.protected_region,
        bare=bare,
    )
    said = fields_of(verdict)
    issues = [*verdict.opinion.issues, *disagreements(verdict.opinion, evidence)]
    return said | {"issues": issues, "evidence": evidence.model_dump(mode="json", exclude_none=True)}
