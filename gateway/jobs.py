"""What became of a job: asked of the ledger, over the bus."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from contracts.job import Job, Jobs, State

router = APIRouter(prefix="/jobs", tags=["jobs"])


async def _ask(request: Request, step: str, **question: Any) -> dict[str, Any]:
    state = request.app.state
    body = {name: value for name, value in question.items() if value is not None}
    return await state.requests.request(step, body, seconds=state.settings.question_seconds)  # type: ignore[no-any-return]


@router.get("/{job_id}")
async def get_job(request: Request, job_id: str) -> Job:
    """One job: its state, its steps with their times, its result or its fault."""
    return Job.model_validate(await _ask(request, "job.get", job_id=job_id))


@router.get("")
async def list_jobs(
    request: Request,
    state: State | None = None,
    tenant: str | None = None,
    before: datetime | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Jobs:
    """Jobs, the youngest first. `before` turns the page."""
    moment = before.isoformat() if before else None
    return Jobs.model_validate(await _ask(request, "job.list", state=state, tenant=tenant, before=moment, limit=limit))


@router.delete("/{job_id}", status_code=202)
async def cancel_job(request: Request, job_id: str) -> dict[str, str]:
    """Ask every worker to stop what it does for this job. What is done already stays done."""
    await request.app.state.requests.cancel(job_id)
    return {"job_id": job_id, "state": "cancelling"}
