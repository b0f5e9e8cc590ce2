"""Make: order a picture or an ad, and watch it come."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from gateway.callers import caller_of
from gateway.console.counter import ConsoleRoute, Form
from gateway.console.job_view import JobView, look_at
from gateway.console.order_form import SCHEDULERS, fields_of, order_of, wrong_fields
from gateway.console.rendering import page
from gateway.console.sessions import PATH

router = APIRouter(prefix=PATH, route_class=ConsoleRoute, include_in_schema=False)

JobId = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9._:@=+~-]{1,255}$")]


@router.get("/make")
async def make_page(request: Request, job: JobId = None, kind: str | None = None) -> Response:
    """The form; with a job, filled in as that one was ordered, and the job beside it."""
    view = await look_at(request, job) if job else None
    fields = fields_of(view.course.order if view else None) | ({"kind": kind} if kind in ("image_order", "ad") else {})
    return shown(request, fields, view)


@router.post("/make")
async def make(request: Request) -> Response:
    form: Form = request.state.form
    try:
        order = order_of(form)
    except ValidationError as error:
        return shown(request, dict(form), None, wrong_fields(error), 422)
    seconds, caller = request.app.state.settings.job_seconds, caller_of(request)
    placed = await request.app.state.counter.hand_in(order, seconds=seconds, wait=0.0, tenant=caller, caller=caller, key=None)
    return RedirectResponse(f"{PATH}/make?job={placed.job_id}", 303)


def shown(
    request: Request, fields: dict[str, Any], view: JobView | None, wrong: dict[str, str] | None = None, status: int = 200
) -> Response:
    return page(request, "make.html", status, fields=fields, wrong=wrong or {}, view=view, schedulers=SCHEDULERS)
