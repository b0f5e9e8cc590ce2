"""The pages Jobs: the list, and one job with its timeline, its live progress, its files, and cancellation."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from contracts.identifiers import ID_RULE, is_identifier, quote_id
from contracts.job import Job, Jobs
from gateway.callers import resolve_tenant, tenant_of
from gateway.console.form_body import SubmittedForm
from gateway.console.gallery import listed_pictures
from gateway.console.guard import ConsoleRoute, safe_redirect_path
from gateway.console.job_progress import JobProgress
from gateway.console.job_view import ConsoleJobView, load_job_view
from gateway.console.rendering import render_page, render_template
from gateway.console.timeline import build_timeline
from gateway.jobs import routes as api
from gateway.jobs.event_stream import JobEventStream
from gateway.jobs.files import ORDER_PICTURES, claim_response, file_name, file_response
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.problems import HttpProblem
from gateway.services import services_of
from gateway.sse import KEEPALIVE_COMMENT, RECONNECT_DELAY, sse_response
from gateway.sse import event as sse_event

router = APIRouter(prefix=f"{CONSOLE_PATH}/jobs", route_class=ConsoleRoute, include_in_schema=False)

JOB_STATES = ("accepted", "running", "completed", "failed", "cancelled")
PAGE_SIZE = 50
LEDGER_WAIT_SECONDS, LEDGER_WAIT_POLLS = 5.0, 50
"""How long the ledger may take to record the end of a job."""


@router.get("")
async def list_jobs(
    request: Request,
    state: Annotated[str, Query(max_length=20)] = "",
    tenant: Annotated[str, Query(max_length=128)] = "",
    job: Annotated[str, Query(max_length=255)] = "",
    words: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")] = "",
    before: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """The newest jobs that match. `before`: creation time of the last job of the previous page. `job` redirects to that job."""
    if job.strip():
        return RedirectResponse(f"{CONSOLE_PATH}/jobs/{quote_id(validate_job_id(job.strip()))}", 303)
    query = {
        "state": state if state in JOB_STATES else None,
        "tenant": resolve_tenant(request, tenant.strip() or None),
        "words": words.strip() or None,
        "before": before or None,
        "limit": PAGE_SIZE,
    }
    jobs = Jobs.model_validate(await services_of(request).commands.query("job.list", query, tenant=tenant_of(request))).jobs
    older = jobs[-1].created_at.isoformat() if len(jobs) == PAGE_SIZE else None
    pictures = {job.job_id: listed_pictures(job) for job in jobs}
    return render_page(
        request, "jobs.html", jobs=jobs, pictures=pictures, states=JOB_STATES, state=state, tenant=tenant, words=words, older=older
    )


def validate_job_id(text: str) -> str:
    """Raises HttpProblem(404) for text that is not a job id."""
    if not is_identifier(text):
        raise HttpProblem(404, "job-unknown", f"{text!r} is not a job id: {ID_RULE}")
    return text


@router.get("/{job_id}")
async def show_job(request: Request, job_id: api.JobId) -> Response:
    view = await load_job_view(request, job_id)
    return render_page(request, "job.html", view=view, timeline=build_timeline(view.progress))


@router.post("/{job_id}/cancel")
async def cancel_job(request: Request, job_id: api.JobId) -> Response:
    form: SubmittedForm = request.state.form
    await api.cancel_job(request, job_id)
    return RedirectResponse(safe_redirect_path(form.get("next", f"{CONSOLE_PATH}/jobs/{quote_id(job_id)}")), 303)


@router.get("/{job_id}/files/{name}")
async def get_file(request: Request, job_id: api.JobId, name: str) -> Response:
    """A file of the job's results, or a picture of its order by its place there, such as `edit.mask`."""
    if name in ORDER_PICTURES:
        view = await load_job_view(request, job_id)
        if claim := view.order_files.get(name):
            return await claim_response(request, view.job, claim, file_name(claim), recorded=False)
    return await file_response(request, await services_of(request).jobs.get_job(job_id, tenant_of(request)), name)


@router.get("/{job_id}/live")
async def stream_progress(request: Request, job_id: api.JobId) -> Response:
    return await sse_response(request, progress_events(request, job_id))


async def progress_events(request: Request, job_id: str) -> AsyncGenerator[str]:
    """HTML fragments as server-sent events until the job ends. Raises HttpProblem(404) before the first.

    `progress`: the steps. `status`: one sentence for screen readers. `result`: the pictures. `end`: the stream is complete.
    """
    progress, last_status = JobProgress(), ""
    events = JobEventStream(services_of(request), job_id, tenant_of(request), None).events()
    async with aclosing(events):
        await anext(events)
        yield RECONNECT_DELAY
        async for event in events:
            if event is None:
                yield KEEPALIVE_COMMENT
                continue
            progress.apply(event)
            yield sse_event("progress", render_template(request, "part_progress.html", progress=progress))
            if (status := render_template(request, "part_status.html", progress=progress).strip()) != last_status:
                last_status = status
                yield sse_event("status", status)
        if job := await wait_until_recorded(request, job_id):
            yield sse_event("result", render_template(request, "part_result.html", view=ConsoleJobView(job, progress)))
        yield sse_event("end", "end")


async def wait_until_recorded(request: Request, job_id: str) -> Job | None:
    """The job once the ledger has recorded its end, which the file routes need; None when that takes too long."""
    for _ in range(LEDGER_WAIT_POLLS):
        job = await _find_job(request, job_id)
        if job and job.state in api.TERMINAL_STATES:
            return job
        await asyncio.sleep(LEDGER_WAIT_SECONDS / LEDGER_WAIT_POLLS)
    return None


async def _find_job(request: Request, job_id: str) -> Job | None:
    try:
        return await services_of(request).jobs.get_job(job_id, tenant_of(request))
    except (ReplyFault, ReplyTimeout):
        return None
