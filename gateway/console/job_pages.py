"""Jobs: the list, one job with its timeline, its live course as server-sent pieces of HTML, its files, and the word to stop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from bus.request_reply import ReplyFault, ReplyTimeout
from contracts.event import Event
from contracts.job import Job, Jobs
from gateway import jobs as api
from gateway.callers import own, tenant_of
from gateway.console.counter import ConsoleRoute, Form, back_to
from gateway.console.course import Course
from gateway.console.job_view import JobView, look_at
from gateway.console.rendering import page, render
from gateway.console.sessions import PATH
from gateway.console.timeline import timeline_of
from gateway.event_stream import KEEPALIVE, RECONNECT, Stream
from gateway.files import send_file
from gateway.problems import Refused

router = APIRouter(prefix=f"{PATH}/jobs", route_class=ConsoleRoute, include_in_schema=False)

STATES = ("accepted", "running", "completed", "failed", "cancelled")
PAGE = 50
RECORD_SECONDS, RECORD_TRIES = 5.0, 50
"""How long the ledger may take to write down the end that it was told of."""


@router.get("")
async def list_jobs(
    request: Request,
    state: Annotated[str, Query(max_length=20)] = "",
    tenant: Annotated[str, Query(max_length=128)] = "",
    job: Annotated[str, Query(max_length=255)] = "",
    words: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")] = "",
    before: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    if job.strip():
        return RedirectResponse(f"{PATH}/jobs/{api_id(job.strip())}", 303)
    question = {
        "state": state if state in STATES else None,
        "tenant": own(request, tenant.strip() or None),
        "words": words.strip() or None,
        "before": before or None,
        "limit": PAGE,
    }
    found = Jobs.model_validate(await request.app.state.counter.ask("job.list", **question)).jobs
    older = found[-1].created_at.isoformat() if len(found) == PAGE else None
    return page(request, "jobs.html", jobs=found, states=STATES, state=state, tenant=tenant, words=words, older=older)


def api_id(text: str) -> str:
    """Raises Refused for what is no id of a job."""
    if not all(letter.isascii() and (letter.isalnum() or letter in "._:@=+~-") for letter in text):
        raise Refused(404, "job-unknown", f"{text!r} is no id of a job")
    return text


@router.get("/{job_id}")
async def show_job(request: Request, job_id: api.JobId) -> Response:
    view = await look_at(request, job_id)
    return page(request, "job.html", view=view, timeline=timeline_of(view.course))


@router.post("/{job_id}/cancel")
async def cancel(request: Request, job_id: api.JobId) -> Response:
    form: Form = request.state.form
    await api.cancel_job(request, job_id)
    return RedirectResponse(back_to(form.get("next", f"{PATH}/jobs/{job_id}")), 303)


@router.get("/{job_id}/files/{name}")
async def get_file(request: Request, job_id: api.JobId, name: str) -> Response:
    return await send_file(request, await request.app.state.counter.job(job_id, tenant_of(request)), name)


@router.get("/{job_id}/live")
async def live(request: Request, job_id: api.JobId) -> Response:
    """`course`: how far it is. `said`: a line for who listens. `result`: the pictures. `end`: nothing more comes."""
    state = request.app.state
    if state.streams >= state.settings.max_streams:
        raise Refused(503, "busy", f"{state.streams} streams are open already.", {"Retry-After": "5"})
    events = Stream(state.counter, job_id, tenant_of(request), None, state.settings.keepalive_seconds).events(state.follower)
    await anext(events)

    async def pieces() -> AsyncIterator[str]:
        state.streams += 1
        try:
            async with aclosing(events):
                yield RECONNECT
                async for piece in told(request, job_id, events):
                    yield piece
        finally:
            state.streams -= 1

    return StreamingResponse(pieces(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def told(request: Request, job_id: str, events: AsyncGenerator[Event | None]) -> AsyncIterator[str]:
    course, word = Course(), ""
    async for event in events:
        if event is None:
            yield KEEPALIVE
            continue
        course.hear(event)
        yield piece("course", render(request, "part_course.html", course=course))
        if (said := render(request, "part_said.html", course=course).strip()) != word:
            word = said
            yield piece("said", said)
    job = await recorded(request, job_id)
    if job:
        yield piece("result", render(request, "part_result.html", view=JobView(job, course)))
    yield piece("end", "end")


async def recorded(request: Request, job_id: str) -> Job | None:
    """The job once the ledger has its end: before that, its files cannot be asked for."""
    for _ in range(RECORD_TRIES):
        job = await _job(request, job_id)
        if job and job.state in api.ENDED:
            return job
        await asyncio.sleep(RECORD_SECONDS / RECORD_TRIES)
    return None


async def _job(request: Request, job_id: str) -> Job | None:
    try:
        found: Job = await request.app.state.counter.job(job_id, tenant_of(request))
    except (ReplyFault, ReplyTimeout):
        return None
    return found


def piece(name: str, html: str) -> str:
    lines = "".join(f"data: {line}\n" for line in html.splitlines() if line.strip())
    return f"event: {name}\n{lines}\n"
