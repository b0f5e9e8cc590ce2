"""Jobs over HTTP: hand one in, ask what became of it, follow it, fetch its files, cancel it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from bus.amqp.request_reply import ReplyTimeout
from bus.errors import PublishError
from contracts.job import Job, Jobs, JobState
from gateway.callers import caller_of, resolve_tenant, tenant_of
from gateway.deadlines import request_timeout, requested_wait
from gateway.jobs.event_stream import JobEventStream
from gateway.jobs.files import file_response, job_files
from gateway.jobs.orders import JobOrder
from gateway.jobs.submission import JobService, Submission
from gateway.problems import HttpProblem, problem_responses
from gateway.sse import sse_response

router = APIRouter(prefix="/jobs", tags=["jobs"])


JobId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:@=+~-]{1,255}$", examples=["01a1fc38-053f-71e3-a782-9ac153c8b035"])]


TenantQuery = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9._:@-]{1,128}$")]


SearchTextQuery = Annotated[str | None, Query(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]


TimestampQuery = Annotated[datetime | None, Query(ge=datetime(1970, 1, 1, tzinfo=UTC), le=datetime(9000, 1, 1, tzinfo=UTC))]


TERMINAL_STATES = frozenset({"completed", "failed", "cancelled"})


class SubmitJobResponse(BaseModel):
    """A job that is under way, or (with `result`) done. The links are paths of this gateway."""

    job_id: str = Field(examples=["01a1fc38-053f-71e3-a782-9ac153c8b035"])
    state: JobState
    result: dict[str, Any] | None = None
    links: dict[str, str]


class Cancelling(BaseModel):
    """Every worker is asked to stop."""

    job_id: str
    state: Literal["cancelling"] = "cancelling"


class File(BaseModel):
    name: str
    href: str
    media_type: str
    size: int
    sha256: str


class JobView(Job):
    """A job as the ledger has it, with its files."""

    files: list[File] = Field(default_factory=list)
    links: dict[str, str] = Field(default_factory=dict)


def _job_service(request: Request) -> JobService:
    counter: JobService = request.app.state.jobs
    return counter


async def _visible_job(request: Request, job_id: str) -> Job:
    """A job that the caller may see."""
    return await _job_service(request).get_job(job_id, tenant_of(request))


def _links(job_id: str) -> dict[str, str]:
    return {"self": f"/jobs/{job_id}", "events": f"/jobs/{job_id}/events", "cancel": f"/jobs/{job_id}"}


@router.post(
    "",
    status_code=202,
    response_model=SubmitJobResponse,
    responses=problem_responses(400, 413) | {200: {"model": SubmitJobResponse, "description": "The job is done."}},
)
async def place_job(
    request: Request,
    order: JobOrder,
    wait: Annotated[float | None, Query(ge=0, le=1e6, description="Seconds to wait for the result.")] = None,
    prefer: Annotated[str | None, Header(description="`wait=30` does the same (RFC 7240).")] = None,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=r"^[!-~]{1,255}$", description="The same key and body mean the same job; with another body it is refused."),
    ] = None,
    x_request_timeout: Annotated[str | None, Header(description="Seconds after which nobody wants the result any more.")] = None,
) -> JSONResponse:
    """Hand a job in. 202 with its id; or 200 with its result, when the client waits and the job ends in time."""
    seconds = request_timeout(request, request.app.state.settings.job_seconds)
    waited = requested_wait(request, wait)
    caller = caller_of(request)
    tenant = resolve_tenant(request, order.tenant) or caller
    placed = await _job_service(request).submit(
        order, seconds=seconds, wait=waited, tenant=tenant, caller=caller, idempotency_key=idempotency_key
    )
    return _submit_response(placed, {"Preference-Applied": f"wait={waited:g}"} if prefer and wait is None and waited else {})


def _submit_response(submission: Submission, headers: dict[str, str]) -> JSONResponse:
    done = submission.result is not None
    answer = SubmitJobResponse(
        job_id=submission.job_id, state="completed" if done else "accepted", result=submission.result, links=_links(submission.job_id)
    )
    headers |= {"Location": f"/jobs/{submission.job_id}"}
    return JSONResponse(answer.model_dump(exclude_none=True), 200 if done else 202, headers=headers)


@router.get("/{job_id}", responses=problem_responses(404), response_model=JobView)
async def get_job(request: Request, job_id: JobId) -> Response:
    """One job: its state, its steps with their times, its result or its fault, its files."""
    job = await _visible_job(request, job_id)
    view = JobView.model_construct(**dict(job), files=_file_views(job), links=_links(job.job_id))
    return Response(view.model_dump_json(exclude_none=True), media_type="application/json")


def _file_views(job: Job) -> list[File]:
    return [
        File(name=name, href=f"/jobs/{job.job_id}/files/{name}", media_type=claim.media_type, size=claim.size, sha256=claim.sha256)
        for name, claim in job_files(job).items()
    ]


@router.get("", responses=problem_responses(), response_model=Jobs)
async def list_jobs(
    request: Request,
    state: JobState | None = None,
    tenant: TenantQuery = None,
    words: SearchTextQuery = None,
    before: TimestampQuery = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> JSONResponse:
    """Jobs, the youngest first. `words` stand in the order's texts or its id.

    `before` turns the page: it is the `created_at` of the last job of the page before.
    """
    moment = before.isoformat() if before else None
    whose = resolve_tenant(request, tenant)
    return JSONResponse(await _job_service(request).query("job.list", state=state, tenant=whose, words=words, before=moment, limit=limit))


@router.delete("/{job_id}", status_code=202, responses=problem_responses(404, 409))
async def cancel_job(request: Request, job_id: JobId) -> Cancelling:
    """Ask every worker to stop what it does for this job. What is done already stays done; a job that has ended is a 409."""
    try:
        job = await _visible_job(request, job_id)
    except (ReplyTimeout, PublishError):
        if tenant_of(request):  # Nobody can say whose job it is.
            raise
        job = None  # Without the ledger a job can be stopped all the same.
    if job and job.state in TERMINAL_STATES:
        raise HttpProblem(409, "job-ended", f"the job is {job.state}", job_id=job_id)
    await request.app.state.requests.cancel(job_id)
    return Cancelling(job_id=job_id)


@router.get(
    "/{job_id}/events",
    responses=problem_responses(404) | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events."}},
    response_class=StreamingResponse,
)
async def follow_job(
    request: Request,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(max_length=255, description="Go on after this event.")] = None,
) -> Response:
    """What happened and happens to the job, as server-sent events, until it ends. The event is named `<step>.<kind>`."""
    state = request.app.state
    stream = JobEventStream(_job_service(request), job_id, tenant_of(request), last_event_id, state.settings.keepalive_seconds)
    return await sse_response(request, stream.render(state.subscription))


@router.get(
    "/{job_id}/files/{name}",
    responses=problem_responses(404, 413)
    | {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "description": "The file."}},
    response_class=StreamingResponse,
)
async def get_file(request: Request, job_id: JobId, name: Annotated[str, Path(max_length=255)]) -> Response:
    """One file of a job. Its address never means other bytes."""
    return await file_response(request, await _visible_job(request, job_id), name)
