"""The page Make: the order form of a picture or an ad, with the live progress of the job it started."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from contracts.identifiers import Identifier
from gateway.callers import caller_of
from gateway.console.guard import ConsoleRoute, SubmittedForm
from gateway.console.job_view import ConsoleJobView, load_job_view
from gateway.console.order_form import SCHEDULERS, field_errors, form_from_order, order_from_form
from gateway.console.rendering import render_page
from gateway.jobs.drawn_texts import find_drawing_problems
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.services import services_of

router = APIRouter(prefix=CONSOLE_PATH, route_class=ConsoleRoute, include_in_schema=False)

JobIdQuery = Annotated[Identifier | None, Query(min_length=1, max_length=255)]


@router.get("/make")
async def make_page(request: Request, job: JobIdQuery = None, kind: str | None = None) -> Response:
    """The order form. With `job`, filled in from that job's order, beside the job's progress."""
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
    services, caller = services_of(request), caller_of(request)
    if problems := find_drawing_problems(order, services.settings):
        errors = {"artist" if name == "signature" else name: problem for name, problem in problems.items()}
        return render_make_page(request, dict(form), None, errors, 422)
    submission = await services.jobs.submit(
        order, seconds=services.settings.job_seconds, wait=0.0, tenant=caller, caller=caller, idempotency_key=None
    )
    return RedirectResponse(f"{CONSOLE_PATH}/make?job={submission.job_id}", 303)


def render_make_page(
    request: Request, fields: dict[str, Any], view: ConsoleJobView | None, errors: dict[str, str] | None = None, status: int = 200
) -> Response:
    return render_page(request, "make.html", status, fields=fields, errors=errors or {}, view=view, schedulers=SCHEDULERS)
