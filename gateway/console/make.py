"""Make: order a picture or an ad, and watch it come."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from gateway.callers import caller_of
from gateway.console.guard import ConsoleRoute, SubmittedForm
from gateway.console.job_view import JobView, load_job_view
from gateway.console.order_form import SCHEDULERS, field_errors, form_from_order, order_from_form
from gateway.console.rendering import render_page
from gateway.middleware.sessions import CONSOLE_PATH

router = APIRouter(prefix=CONSOLE_PATH, route_class=ConsoleRoute, include_in_schema=False)

JobIdQuery = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9._:@=+~-]{1,255}$")]


@router.get("/make")
async def make_page(request: Request, job: JobIdQuery = None, kind: str | None = None) -> Response:
    """The form; with a job, filled in as that one was ordered, and the job beside it."""
    view = await load_job_view(request, job) if job else None
    fields = form_from_order(view.progress.order if view else None) | ({"kind": kind} if kind in ("image_order", "ad") else {})
    return render_make_page(request, fields, view)


@router.post("/make")
async def submit_order(request: Request) -> Response:
    form: SubmittedForm = request.state.form
    try:
        order = order_from_form(form)
    except ValidationError as error:
        return render_make_page(request, dict(form), None, field_errors(error), 422)
    seconds, caller = request.app.state.settings.job_seconds, caller_of(request)
    placed = await request.app.state.jobs.submit(order, seconds=seconds, wait=0.0, tenant=caller, caller=caller, idempotency_key=None)
    return RedirectResponse(f"{CONSOLE_PATH}/make?job={placed.job_id}", 303)


def render_make_page(
    request: Request, fields: dict[str, Any], view: JobView | None, errors: dict[str, str] | None = None, status: int = 200
) -> Response:
    return render_page(request, "make.html", status, fields=fields, wrong=errors or {}, view=view, schedulers=SCHEDULERS)
