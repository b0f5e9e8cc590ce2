"""OpenAI's `POST /v1/images/generations`: one command to the image actor for every four images, returned in order or streamed."""

import asyncio
import base64
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PermanentError, PublishError
from contracts.claim import Claim, ImageFormat
from contracts.image import ImageDone
from contracts.wire import Step
from gateway.callers import caller_of
from gateway.deadlines import request_timeout
from gateway.jobs.files import file_name, job_files
from gateway.memory_budget import hold_bytes
from gateway.middleware.public_url import public_url
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute
from gateway.openai.image_requests import BYTES_PER_IMAGE_BYTE, ImageRequest, PictureRequest
from gateway.openai.image_stream import error_event, stream_image
from gateway.problems import REQUEST_ERRORS, HttpProblem
from gateway.services import Services, services_of
from gateway.sse import sse_response
from gateway.strict_model import HttpModel

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

UPLOAD_PATHS = frozenset({"/v1/images/generations"})
LEDGER_POLL_SECONDS = 0.05


class Picture(HttpModel):
    b64_json: str | None = None
    url: str | None = None


class Pictures(HttpModel):
    created: int = Field(description="Seconds since 1970-01-01.")
    data: list[Picture]
    output_format: ImageFormat = "png"
    size: str
    seeds: list[int] = Field(description="An extension: the seed of each image.")


@router.post("/images/generations", response_model=Pictures, response_model_exclude_none=True, responses=ERROR_RESPONSES)
async def generate(request: Request, body: ImageRequest) -> Pictures | StreamingResponse:
    """Generate images; with `stream`, one, as server-sent events. A disconnect cancels the generation."""
    services = services_of(request)
    services.require_store()
    body.check(services.file_memory.share_bytes)
    return await draw(request, body, await body.store_control(request), "image_generation")


async def draw(request: Request, body: PictureRequest, pictures: dict[str, Any], event_name: str) -> Pictures | StreamingResponse:
    """The images of a checked request. `pictures`: the command's `edit` or `control`."""
    commands = list(body.commands(pictures))
    if body.stream:
        return await sse_response(request, stream_image(request, commands[0], body, event_name), error_event)
    try:
        async with asyncio.TaskGroup() as group:
            batches = [group.create_task(generate_batch(request, command)) for command in commands]
    except* (*REQUEST_ERRORS, HttpProblem) as failures:
        failure = failures.exceptions[0]
    else:
        return await build_response(request, [batch.result() for batch in batches], body)
    raise failure


async def generate_batch(request: Request, command: dict[str, Any]) -> tuple[str, ImageDone]:
    """The job's id, and its result."""
    job_id = str(uuid4())
    return job_id, ImageDone.model_validate(await services_of(request).commands.call(request, Step.IMAGE.value, command, job_id=job_id))


async def build_response(request: Request, batches: list[tuple[str, ImageDone]], body: PictureRequest) -> Pictures:
    """The images of all batches, in order. Raises HttpProblem(500, 503), TemporaryError."""
    claims = [(claim, job_id) for job_id, done in batches for claim in done.images]
    services = services_of(request)
    if body.as_base64:
        total = sum(claim.size for claim, _ in claims) * BYTES_PER_IMAGE_BYTE
        await hold_bytes(request, services.file_memory, total, request_timeout(request.headers, services.settings))
    first = claims[0][0]
    return Pictures(
        created=int(time.time()),
        data=[await to_picture(request, claim, job_id, as_base64=body.as_base64) for claim, job_id in claims],
        output_format=body.output_format or "png",
        size=f"{first.width}x{first.height}",
        seeds=[seed for _, done in batches for seed in done.seeds],
    )


async def to_picture(request: Request, claim: Claim, job_id: str, *, as_base64: bool) -> Picture:
    """Raises HttpProblem(500, 503), TemporaryError."""
    store = services_of(request).require_store()
    try:
        if not as_base64:
            return Picture(url=await image_url(request, claim, job_id))
        return Picture(b64_json=base64.b64encode(await store.read(claim, tenant=caller_of(request))).decode())
    except PermanentError as error:
        raise HttpProblem(500, error.code, str(error)) from error


async def image_url(request: Request, claim: Claim, job_id: str) -> str:
    """The image's URL: the store's own, or that of the jobs API when the store is a folder."""
    services = services_of(request)
    url, name = await services.require_store().url(claim, tenant=caller_of(request)), file_name(claim)
    if url.startswith("http"):
        return url
    await wait_until_in_ledger(services, job_id, name)
    return public_url(request, f"/jobs/{job_id}/files/{quote(name)}")


async def wait_until_in_ledger(services: Services, job_id: str, name: str) -> None:
    """The jobs API reads from the ledger, which may record the result after the reply has arrived."""
    with suppress(TimeoutError, ReplyTimeout, PublishError):
        async with asyncio.timeout(services.settings.question_seconds):
            while True:
                with suppress(ReplyFault):
                    if name in job_files(await services.jobs.get_job(job_id)):
                        return
                await asyncio.sleep(LEDGER_POLL_SECONDS)
