"""Consult: answers a question, with or without a picture, with a chain of thought and an answer.

Reads `prompt` and `picture` or `image`; returns the answer's text. `consult.ready` returns whether a question would be answered now.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from actors.engines.language.requests import VlmRequest
from actors.vision.image_loader import ImageLoader
from actors.vision.prompts import build_consult_prompt
from actors.vision.settings import VisionSettings, VlmSettings
from actors.vision.verdict_parser import trim_repetition
from actors.vision.vlm_client import VlmClient, open_vlm_client
from bus.actor import Actor, Context, Handler, Resources, query_actor
from bus.errors import TemporaryError
from contracts.consult import Consult, ConsultDone, ConsultReady, IsConsultReady
from contracts.wire import Step


@asynccontextmanager
async def open_consult(resources: Resources) -> AsyncIterator[Handler]:
    settings = VisionSettings()
    async with open_vlm_client(VlmSettings.for_step(Step.CONSULT), resources.shared, resources.set_unready) as client:
        resources.register_engine(client.engine)
        yield partial(consult, client=client, image_loader=ImageLoader(resources.claims, settings), settings=settings)


@asynccontextmanager
async def open_consult_ready(resources: Resources) -> AsyncIterator[Handler]:
    async with open_vlm_client(VlmSettings.for_step(Step.CONSULT), resources.shared) as client:
        yield partial(is_ready, client=client, settings=VisionSettings())


async def consult(
    command: Consult, context: Context, *, client: VlmClient, image_loader: ImageLoader, settings: VisionSettings
) -> ConsultDone:
    request = VlmRequest(
        text=build_consult_prompt(command.prompt),
        images=await load_images(command, context.tenant, image_loader),
        max_new_tokens=command.max_new_tokens or settings.consult_max_new_tokens,
        repetition_penalty=settings.consult_repetition_penalty,
    )
    response = await client.generate(request, tenant=context.tenant, deadline=context.deadline)
    return ConsultDone(
        prediction=trim_repetition(response.text), finish=response.finish_reason, tokens=response.completion_tokens, seen_by=response.model
    )


async def load_images(command: Consult, tenant: str | None, image_loader: ImageLoader) -> tuple[bytes, ...]:
    """The command's pictures as PNGs. `image` stands in the place of `picture`, and is not read beside it."""
    claims = [*([command.picture] if command.picture else []), *command.pictures]
    in_message = [await image_loader.from_base64(command.image)] if command.image and not command.picture else []
    pictures = [*in_message, *[await image_loader.from_claim(claim, tenant=tenant) for claim in claims]]
    return tuple([await image_loader.encode_for_model(picture) for picture in pictures])


async def is_ready(command: IsConsultReady, context: Context, *, client: VlmClient, settings: VisionSettings) -> ConsultReady:
    """Raises TemporaryError while the model loads."""
    try:
        async with asyncio.timeout(settings.warm_seconds):
            return ConsultReady(model=await client.ready(), loaded=client.loaded)
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
    query_actor(
        "consult.ready",
        IsConsultReady,
        ConsultReady,
        open_consult_ready,
        "Returns the model's name when a consultation would be answered now.",
        timeout_seconds=10,
        prefetch=8,
    ),
)
