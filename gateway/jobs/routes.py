"""Jobs over HTTP: submit, read, list, cancel, stream events, download files."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from bus.amqp.request_reply import ReplyTimeout
from bus.errors import PublishError
from contracts.identifiers import Identifier, quote_id
from contracts.job import Job, Jobs, JobState
from gateway.callers import caller_of, resolve_tenant, tenant_of
from gateway.deadlines import request_timeout, requested_wait
from gateway.jobs.event_stream import JobEventStream
from gateway.jobs.files import file_response, job_files
from gateway.jobs.inline_files import store_inline_files
from gateway.jobs.orders import JobOrder
from gateway.jobs.submission import Submission
from gateway.json_body import JsonRoute
from gateway.middleware.public_url import public_path
from gateway.problems import HttpProblem, problem_responses
from gateway.services import services_of
from gateway.sse import sse_response
from gateway.strict_model import HttpModel

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)

JobId = Annotated[Identifier, Path(min_length=1, max_length=255, examples=["01a1fc38-053f-71e3-a782-9ac153c8b035"])]
TenantQuery = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9._:@-]{1,128}$")]
SearchTextQuery = Annotated[str | None, Query(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]
TimestampQuery = Annotated[datetime | None, Query(ge=datetime(1970, 1, 1, tzinfo=UTC), le=datetime(9000, 1, 1, tzinfo=UTC))]

UPLOAD_PATHS = frozenset({"/jobs"})
TERMINAL_STATES = frozenset({"completed", "failed", "cancelled"})


class SubmitJobResponse(HttpModel):
    """An accepted job; with `result` when it has completed. The links are paths of this gateway."""

    job_id: str = Field(examples=["01a1fc38-053f-71e3-a782-9ac153c8b035"])
    state: JobState
    result: dict[str, Any] | None = None
    links: dict[str, str]


class Cancelling(HttpModel):
    """The cancellation has been sent to every worker."""

    job_id: str
    state: Literal["cancelling"] = "cancelling"


class File(HttpModel):
    name: str
    href: str
    media_type: str
    size: int
    sha256: str


class JobView(Job):
    """A job as recorded in the ledger, with its files."""

    files: list[File] = Field(default_factory=list)
    links: dict[str, str] = Field(default_factory=dict)


async def _visible_job(request: Request, job_id: str) -> Job:
    """The job. Raises ReplyFault("job-unknown") for another tenant's."""
    return await services_of(request).jobs.get_job(job_id, tenant_of(request))


def _links(request: Request, job_id: str) -> dict[str, str]:
    path = public_path(request, f"/jobs/{quote_id(job_id)}")
    return {"self": path, "events": f"{path}/events", "cancel": path}


@router.post(
    "",
    status_code=202,
    response_model=SubmitJobResponse,
    operation_id="place_job_jobs_post",
    summary="Place Job",
    responses=problem_responses(400, 413) | {200: {"model": SubmitJobResponse, "description": "The job has completed."}},
)
async def submit_job(
    request: Request,
    order: JobOrder,
    wait: Annotated[float | None, Query(ge=0, le=1e6, description="Seconds to wait for the result.")] = None,
    prefer: Annotated[str | None, Header(description="`wait=30` does the same (RFC 7240).")] = None,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=r"^[!-~]{1,255}$", description="The same key and body mean the same job; another body is rejected."),
    ] = None,
    x_request_timeout: Annotated[str | None, Header(description="Seconds until the job's deadline.")] = None,
) -> JSONResponse:
    """Submit a job. 202 with its id; or 200 with its result, when the client waits and the job completes in time."""
    services, caller = services_of(request), caller_of(request)
    seconds = request_timeout(request.headers, services.settings, services.settings.job_seconds)
    waited = requested_wait(request.headers, services.settings, wait)
    tenant = resolve_tenant(request, order.tenant) or caller
    order = await store_inline_files(request, order, tenant)
    submission = await services.jobs.submit(
        order, seconds=seconds, wait=waited, tenant=tenant, caller=caller, idempotency_key=idempotency_key
    )
    return _submit_response(request, submission, {"Preference-Applied": f"wait={waited:g}"} if prefer and wait is None and waited else {})


def _submit_response(request: Request, submission: Submission, headers: dict[str, str]) -> JSONResponse:
    done = submission.result is not None
    links = _links(request, submission.job_id)
    body = SubmitJobResponse(job_id=submission.job_id, state="completed" if done else "accepted", result=submission.result, links=links)
    headers |= {"Location": f"/jobs/{submission.job_id}"}
    return JSONResponse(body.model_dump(exclude_none=True), 200 if done else 202, headers=headers)


@router.get("/{job_id}", responses=problem_responses(404), response_model=JobView)
async def get_job(request: Request, job_id: JobId) -> Response:
    """One job: state, steps with their times, result or fault, files."""
    job = await _visible_job(request, job_id)
    view = JobView.model_construct(**dict(job), files=_file_views(request, job), links=_links(request, job.job_id))
    return Response(view.model_dump_json(exclude_none=True), media_type="application/json")


def _file_views(request: Request, job: Job) -> list[File]:
    folder = public_path(request, f"/jobs/{quote_id(job.job_id)}/files")
    return [
        File(name=name, href=f"{folder}/{quote(name)}", media_type=claim.media_type, size=claim.size, sha256=claim.sha256)
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
    """Jobs, the newest first. `words`: search in the order's texts and its id.

    `before`: for the next page, the `created_at` of the last job on this one.
    """
    fields = {"state": state, "tenant": resolve_tenant(request, tenant), "words": words, "limit": limit}
    fields["before"] = before.isoformat() if before else None
    return JSONResponse(await services_of(request).commands.query("job.list", fields, tenant=tenant_of(request)))


@router.delete("/{job_id}", status_code=202, responses=problem_responses(404, 409))
async def cancel_job(request: Request, job_id: JobId) -> Cancelling:
    """Tell every worker to stop working on this job. Completed steps are kept; a job that has ended is a 409."""
    try:
        job = await _visible_job(request, job_id)
    except (ReplyTimeout, PublishError):
        if tenant_of(request):  # Without the ledger, the job's tenant is unknown.
            raise
        job = None  # An operator may cancel any job.
    if job and job.state in TERMINAL_STATES:
        raise HttpProblem(409, "job-ended", f"the job is {job.state}", job_id=job_id)
    await services_of(request).commands.requests.cancel(job_id)
    return Cancelling(job_id=job_id)


@router.get(
    "/{job_id}/events",
    operation_id="follow_job_jobs__job_id__events_get",
    summary="Follow Job",
    responses=problem_responses(404) | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events."}},
    response_class=StreamingResponse,
)
async def stream_events(
    request: Request,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(max_length=255, description="Resume after this event.")] = None,
) -> Response:
    """All events of the job until it ends, as server-sent events. An event is named `<step>.<kind>`."""
    return await sse_response(request, JobEventStream(services_of(request), job_id, tenant_of(request), last_event_id).render())


@router.get(
    "/{job_id}/files/{name}",
    responses=problem_responses(404, 413)
    | {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "description": "The file."}},
    response_class=StreamingResponse,
)
async def get_file(request: Request, job_id: JobId, name: Annotated[str, Path(max_length=255)]) -> Response:
    """One file of a job. The bytes at a URL never change."""
    return await file_response(request, await _visible_job(request, job_id), name)
