"""Jobs: the list, one job with its timeline, its live course as server-sent pieces of HTML, its files, and the word to stop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from contracts.event import Event
from contracts.job import Job, Jobs
from gateway.callers import resolve_tenant, tenant_of
from gateway.console.guard import ConsoleRoute, SubmittedForm, safe_redirect_path
from gateway.console.job_progress import JobProgress
from gateway.console.job_view import JobView, load_job_view
from gateway.console.rendering import render_page, render_template
from gateway.console.timeline import build_timeline
from gateway.jobs import routes as api
from gateway.jobs.event_stream import JobEventStream
from gateway.jobs.files import file_response
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.problems import HttpProblem
from gateway.sse import KEEPALIVE_COMMENT, RECONNECT_DELAY

router = APIRouter(prefix=f"{CONSOLE_PATH}/jobs", route_class=ConsoleRoute, include_in_schema=False)

JOB_STATES = ("accepted", "running", "completed", "failed", "cancelled")
PAGE_SIZE = 50
LEDGER_WAIT_SECONDS, LEDGER_WAIT_POLLS = 5.0, 50
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
        return RedirectResponse(f"{CONSOLE_PATH}/jobs/{validate_job_id(job.strip())}", 303)
    question = {
        "state": state if state in JOB_STATES else None,
        "tenant": resolve_tenant(request, tenant.strip() or None),
        "words": words.strip() or None,
        "before": before or None,
        "limit": PAGE_SIZE,
    }
    found = Jobs.model_validate(await request.app.state.jobs.query("job.list", **question)).jobs
    older = found[-1].created_at.isoformat() if len(found) == PAGE_SIZE else None
    return render_page(request, "jobs.html", jobs=found, states=JOB_STATES, state=state, tenant=tenant, words=words, older=older)


def validate_job_id(text: str) -> str:
    """Raises Refused for what is no id of a job."""
    if not all(letter.isascii() and (letter.isalnum() or letter in "._:@=+~-") for letter in text):
        raise HttpProblem(404, "job-unknown", f"{text!r} is no id of a job")
    return text


@router.get("/{job_id}")
async def show_job(request: Request, job_id: api.JobId) -> Response:
    view = await load_job_view(request, job_id)
    return render_page(request, "job.html", view=view, timeline=build_timeline(view.progress))


@router.post("/{job_id}/cancel")
async def cancel_job(request: Request, job_id: api.JobId) -> Response:
    form: SubmittedForm = request.state.form
    await api.cancel_job(request, job_id)
    return RedirectResponse(safe_redirect_path(form.get("next", f"{CONSOLE_PATH}/jobs/{job_id}")), 303)


@router.get("/{job_id}/files/{name}")
async def get_file(request: Request, job_id: api.JobId, name: str) -> Response:
    return await file_response(request, await request.app.state.jobs.get_job(job_id, tenant_of(request)), name)


@router.get("/{job_id}/live")
async def stream_progress(request: Request, job_id: api.JobId) -> Response:
    """`course`: how far it is. `said`: a line for who listens. `result`: the pictures. `end`: nothing more comes."""
    state = request.app.state
    if state.streams >= state.settings.max_streams:
        raise HttpProblem(503, "busy", f"{state.streams} streams are open already.", {"Retry-After": "5"})
    events = JobEventStream(state.jobs, job_id, tenant_of(request), None, state.settings.keepalive_seconds).events(state.subscription)
    await anext(events)

    async def pieces() -> AsyncIterator[str]:
        state.streams += 1
        try:
            async with aclosing(events):
                yield RECONNECT_DELAY
                async for piece in progress_events(request, job_id, events):
                    yield piece
        finally:
            state.streams -= 1

    return StreamingResponse(pieces(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def progress_events(request: Request, job_id: str, events: AsyncGenerator[Event | None]) -> AsyncIterator[str]:
    course, word = JobProgress(), ""
    async for event in events:
        if event is None:
            yield KEEPALIVE_COMMENT
            continue
        course.apply(event)
        yield format_sse_event("course", render_template(request, "part_course.html", course=course))
        if (said := render_template(request, "part_said.html", course=course).strip()) != word:
            word = said
            yield format_sse_event("said", said)
    job = await wait_until_recorded(request, job_id)
    if job:
        yield format_sse_event("result", render_template(request, "part_result.html", view=JobView(job, course)))
    yield format_sse_event("end", "end")


async def wait_until_recorded(request: Request, job_id: str) -> Job | None:
    """The job once the ledger has its end: before that, its files cannot be asked for."""
    for _ in range(LEDGER_WAIT_POLLS):
        job = await _find_job(request, job_id)
        if job and job.state in api.TERMINAL_STATES:
            return job
        await asyncio.sleep(LEDGER_WAIT_SECONDS / LEDGER_WAIT_POLLS)
    return None


async def _find_job(request: Request, job_id: str) -> Job | None:
    try:
        found: Job = await request.app.state.jobs.get_job(job_id, tenant_of(request))
    except (ReplyFault, ReplyTimeout):
        return None
    return found


def format_sse_event(name: str, html: str) -> str:
    lines = "".join(f"data: {line}\n" for line in html.splitlines() if line.strip())
    return f"event: {name}\n{lines}\n"
