"""OpenAI's `POST /v1/images/generations`: one command to the image actor for every four images, returned in order."""

import asyncio
import base64
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal
from urllib.parse import quote
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PermanentError, PublishError
from contracts.claim import Claim
from contracts.image import ImageDone, SchedulerName
from contracts.wire import Step
from gateway.callers import caller_of
from gateway.deadlines import request_timeout
from gateway.jobs.files import file_name, job_files
from gateway.memory_budget import hold_bytes
from gateway.middleware.public_url import public_url
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute
from gateway.problems import REQUEST_ERRORS, HttpProblem
from gateway.services import Services, services_of

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

DEFAULT_IMAGE_MODEL = "image"
"""The name by which a client may request whatever model the image actor has."""
MAX_IMAGES_PER_COMMAND = 4
BYTES_PER_IMAGE_BYTE = 3
"""The image, its base64 text, and the response."""
MAX_BYTES_PER_PIXEL = 3.1
"""Of a PNG whose pixels are noise."""
DEFAULT_SIDE = 512
LEDGER_POLL_SECONDS = 0.05
STEPS_BY_QUALITY = {"low": 20, "medium": 30, "high": 75, "hd": 75}
"""Diffusion steps by quality; other qualities leave the number to the actor."""
IMAGE_REQUEST_EXAMPLE: dict[str, JsonValue] = {
    "prompt": "a red fox in fresh snow, watercolour",
    "n": 1,
    "size": "512x512",
    "response_format": "b64_json",
}


class ImageRequest(BaseModel):
    """An image request. `seed` and the fields after it are extensions; OpenAI's clients send them in `extra_body`."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [IMAGE_REQUEST_EXAMPLE]})

    prompt: str = Field(min_length=1, max_length=4000)
    model: str | None = Field(None, description="A name from IMAGE_MODELS; `image` or none: the actor's default.")
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: str | None = Field(
        "auto",
        pattern=r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$",
        description="`auto` is 512x512. Sides: 64 to 2048, multiples of 8.",
    )
    response_format: Literal["b64_json", "url"] | None = Field("b64_json", description="`url`: where the image can be downloaded.")
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        "auto", description="Decides the number of diffusion steps."
    )
    output_format: Literal["png"] | None = "png"
    background: Literal["auto", "opaque"] | None = "auto"
    stream: Literal[False] | None = False
    user: str | None = None
    seed: int | None = Field(None, ge=0, lt=2**62)
    steps: int | None = Field(None, ge=1, le=500)
    negative_prompt: str | None = Field(None, max_length=4000)
    guidance_scale: float | None = Field(None, ge=0, le=50)
    scheduler: SchedulerName | None = None

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height; None: the actor's default."""
        if not self.size or self.size == "auto":
            return None
        width, height = map(int, self.size.split("x"))
        return width, height

    @property
    def as_base64(self) -> bool:
        return self.response_format != "url"

    def check_memory(self, share_bytes: int) -> None:
        """Before any work: whether the images fit into a response. Raises HttpProblem(400)."""
        width, height = self.sides or (DEFAULT_SIDE, DEFAULT_SIDE)
        image_bytes = int(width * height * MAX_BYTES_PER_PIXEL) * BYTES_PER_IMAGE_BYTE
        if self.as_base64 and image_bytes * (self.n or 1) > share_bytes:
            most = share_bytes // image_bytes
            detail = f"a response with b64_json holds at most {most} images of {width}x{height}: ask for fewer, or for response_format url"
            raise HttpProblem(400, "too-many-pixels", detail, param="n")

    def commands(self) -> Iterator[dict[str, Any]]:
        """One command per four images. Image number i has the seed `seed` + i."""
        fields = self.model_dump(include={"prompt", "negative_prompt", "guidance_scale", "scheduler"}, exclude_none=True)
        if self.model and self.model != DEFAULT_IMAGE_MODEL:
            fields["model"] = self.model
        if steps := self.steps or STEPS_BY_QUALITY.get(self.quality or ""):
            fields["steps"] = steps
        if self.sides:
            fields["width"], fields["height"] = self.sides
        count = self.n or 1
        for first in range(0, count, MAX_IMAGES_PER_COMMAND):
            seed = {} if self.seed is None else {"seed": self.seed + first}
            yield fields | seed | {"count": min(MAX_IMAGES_PER_COMMAND, count - first)}


class Picture(BaseModel):
    b64_json: str | None = None
    url: str | None = None


class Pictures(BaseModel):
    created: int = Field(description="Seconds since 1970-01-01.")
    data: list[Picture]
    output_format: str = "png"
    size: str
    seeds: list[int] = Field(description="An extension: the seed of each image.")


@router.post("/images/generations", response_model=Pictures, response_model_exclude_none=True, responses=ERROR_RESPONSES)
async def generate(request: Request, body: ImageRequest) -> Pictures:
    """Generate images. A disconnect cancels the generation."""
    services_of(request).require_store()
    body.check_memory(services_of(request).file_memory.share_bytes)
    try:
        async with asyncio.TaskGroup() as group:
            batches = [group.create_task(generate_batch(request, command)) for command in body.commands()]
    except* (*REQUEST_ERRORS, HttpProblem) as failures:
        failure = failures.exceptions[0]
    else:
        return await build_response(request, [batch.result() for batch in batches], as_base64=body.as_base64)
    raise failure


async def generate_batch(request: Request, command: dict[str, Any]) -> tuple[str, ImageDone]:
    """The job's id, and its result."""
    job_id = str(uuid4())
    return job_id, ImageDone.model_validate(await services_of(request).commands.call(request, Step.IMAGE.value, command, job_id=job_id))


async def build_response(request: Request, batches: list[tuple[str, ImageDone]], *, as_base64: bool) -> Pictures:
    """The images of all batches, in order. Raises HttpProblem(500, 503), TemporaryError."""
    claims = [(claim, job_id) for job_id, done in batches for claim in done.images]
    services = services_of(request)
    if as_base64:
        total = sum(claim.size for claim, _ in claims) * BYTES_PER_IMAGE_BYTE
        await hold_bytes(request, services.file_memory, total, request_timeout(request.headers, services.settings))
    first = claims[0][0]
    return Pictures(
        created=int(time.time()),
        data=[await to_picture(request, claim, job_id, as_base64=as_base64) for claim, job_id in claims],
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
