"""Consult: a question about a picture, or without one, answered in a chain of thought and an answer.

Reads `prompt` and `picture` or `image`; returns the answer's text. `consult.ready` tells whether a question would be answered now.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from actors.engines.vlm import Question
from actors.seeing.answers import without_repetition
from actors.seeing.pictures import Pictures
from actors.seeing.prompts import consult_text
from actors.seeing.settings import SeeingSettings, VlmSettings
from actors.seeing.sight import Sight, open_sight
from bus.actor import Actor, Context, Handler, Tools
from bus.errors import TemporaryError
from contracts.consult import Consult, ConsultDone, ConsultReady, IsConsultReady
from contracts.wire import Step


@asynccontextmanager
async def open_consult(tools: Tools) -> AsyncIterator[Handler]:
    settings = SeeingSettings()
    async with open_sight(VlmSettings.of(Step.CONSULT), tools.unready) as sight:
        tools.show(sight.engine)
        yield partial(consult, sight=sight, pictures=Pictures(tools.claims, settings), settings=settings)


@asynccontextmanager
async def open_ready(tools: Tools) -> AsyncIterator[Handler]:
    async with open_sight(VlmSettings.of(Step.CONSULT)) as sight:
        yield partial(is_ready, sight=sight, settings=SeeingSettings())


async def consult(command: Consult, context: Context, *, sight: Sight, pictures: Pictures, settings: SeeingSettings) -> ConsultDone:
    question = Question(
        text=consult_text(command.prompt),
        image=await shown(command, pictures),
        max_new_tokens=command.max_new_tokens or settings.consult_max_new_tokens,
        repetition_penalty=settings.consult_repetition_penalty,
    )
    answer = await sight.look(question, tenant=context.tenant, deadline=context.deadline)
    return ConsultDone(prediction=without_repetition(answer.text), finish=answer.finish, tokens=answer.tokens, seen_by=answer.model)


async def shown(command: Consult, pictures: Pictures) -> bytes | None:
    """The picture as the engine gets it; None when there is none."""
    if command.picture:
        return await pictures.shown(await pictures.of_claim(command.picture))
    if command.image:
        return await pictures.shown(await pictures.of_text(command.image))
    return None


async def is_ready(command: IsConsultReady, context: Context, *, sight: Sight, settings: SeeingSettings) -> ConsultReady:
    """Raises TemporaryError while the model loads."""
    try:
        async with asyncio.timeout(settings.warm_seconds):
            return ConsultReady(model=await sight.ready())
    except TimeoutError:
        raise TemporaryError("the model is loading", code="loading") from None


ACTORS = (
    Actor(
        step=Step.CONSULT,
        command=Consult,
        result=ConsultDone,
        open=open_consult,
        timeout_seconds=600,
        prefetch=8,
        description="Answers a question about a picture.",
    ),
    Actor(
        step="consult.ready",
        command=IsConsultReady,
        result=ConsultReady,
        open=open_ready,
        timeout_seconds=10,
        prefetch=8,
        remembers=False,
        announces=False,
        question=True,
        description="Tells whether a consultation would be answered now.",
    ),
)
