"""One image as server-sent events with OpenAI's names: previews of the unfinished image, then the image."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import Request

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PermanentError, TemporaryError
from contracts.event import Event
from contracts.image import ImageDone
from contracts.wire import Step
from gateway.callers import caller_of
from gateway.deadlines import request_timeout
from gateway.memory_budget import hold_bytes
from gateway.openai.errors import openai_error, to_openai_problem
from gateway.openai.image_requests import BYTES_PER_IMAGE_BYTE, PictureRequest
from gateway.problems import REQUEST_ERRORS, HttpProblem, to_problem
from gateway.services import services_of
from gateway.sse import json_data, json_event


class PartialImages:
    """Which previews are sent: at most `count`, one for each equal part of the steps."""

    def __init__(self, count: int) -> None:
        self._percents = [100 * number // (count + 1) for number in range(1, count + 1)]
        self.sent = 0

    def take(self, event: Event) -> str | None:
        """The preview of a progress event, base64; None when it has none, or none is due."""
        progress = event.progress
        if progress is None or progress.preview is None or not self._percents or progress.progress_percent < self._percents[0]:
            return None
        self._percents = [percent for percent in self._percents if percent > progress.progress_percent]
        self.sent += 1
        return progress.preview


async def stream_image(request: Request, command: dict[str, Any], body: PictureRequest, name: str) -> AsyncGenerator[str]:
    """The events `<name>.partial_image` and `<name>.completed`. Closing the generator before its end cancels the work.

    A failure before the first event is raised as HttpProblem; a later one is sent as an event.
    """
    services, tenant, job_id = services_of(request), caller_of(request), str(uuid4())
    partial_images = PartialImages(body.partial_images or 0)
    frame = {"background": "opaque", "quality": body.quality or "auto"}
    async with services.subscription.subscribe(job_id) as events:
        reply = asyncio.ensure_future(services.commands.call(request, Step.IMAGE.value, command, job_id=job_id))
        try:
            async with aclosing(events_until(reply, events)) as progress:
                async for event in progress:
                    if event.tenant == tenant and (preview := partial_images.take(event)):
                        fields = {"partial_image_index": partial_images.sent - 1, "size": body.size or "auto", "output_format": "jpeg"}
                        yield image_event(f"{name}.partial_image", preview, frame | fields)
            yield await completed_event(request, f"{name}.completed", await reply, frame | {"output_format": body.output_format or "png"})
        except (*REQUEST_ERRORS, HttpProblem, PermanentError, TemporaryError) as error:
            problem = to_stream_problem(error)
            if not partial_images.sent:
                raise problem from error
            yield error_event(problem)
        finally:
            reply.cancel()
            await asyncio.wait([reply])


async def events_until(reply: "asyncio.Future[Any]", events: "asyncio.Queue[Event]") -> AsyncGenerator[Event]:
    """The events that arrive before the reply."""
    while not reply.done():
        event = asyncio.ensure_future(events.get())
        try:
            await asyncio.wait({reply, event}, return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                yield event.result()
        finally:
            event.cancel()


async def completed_event(request: Request, name: str, result: dict[str, Any], frame: dict[str, Any]) -> str:
    """Raises HttpProblem(413, 503), PermanentError, TemporaryError."""
    services, done = services_of(request), ImageDone.model_validate(result)
    claim = done.images[0]
    await hold_bytes(request, services.file_memory, claim.size * BYTES_PER_IMAGE_BYTE, request_timeout(request.headers, services.settings))
    data = await services.require_store().read(claim, tenant=caller_of(request))
    fields = {"size": f"{claim.width}x{claim.height}", "seed": done.metadata.seed, "usage": None}
    return image_event(name, base64.b64encode(data).decode(), frame | fields)


def image_event(name: str, b64_json: str, fields: dict[str, Any]) -> str:
    return json_event(name, {"type": name, "b64_json": b64_json, "created_at": int(time.time())} | fields)


def to_stream_problem(error: Exception) -> HttpProblem:
    """`error`: of the command, or of the store that has its image."""
    match error:
        case ReplyFault() | ReplyTimeout():
            return to_openai_problem(error)
        case PermanentError():
            return HttpProblem(500, error.code, str(error))
        case _:
            return to_problem(error)


def error_event(problem: HttpProblem) -> str:
    return json_data(openai_error(problem))
