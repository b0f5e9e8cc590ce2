"""The page Make: the order form of a picture or an ad, with the live progress of the job it started."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from contracts.identifiers import Identifier
from gateway.callers import caller_of
from gateway.console.form_body import SubmittedForm
from gateway.console.guard import ConsoleRoute
from gateway.console.job_view import ConsoleJobView, load_job_view
from gateway.console.order_form import (
    DEFAULTS,
    FURTHER_FIELDS,
    KEPT_FIELDS,
    LORA_ROWS,
    NOT_STORED,
    OUTPUT_FORMATS,
    SCHEDULERS,
    field_errors,
    form_from_order,
    lora_rows,
    order_from_form,
    picture_links,
)
from gateway.console.rendering import render_page
from gateway.console.source_pictures import InvalidPictures, check_pictures, store_pictures
from gateway.jobs.drawn_texts import find_drawing_problems
from gateway.middleware.public_url import public_path
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.services import services_of

MAKE_PATH = f"{CONSOLE_PATH}/make"

router = APIRouter(prefix=CONSOLE_PATH, route_class=ConsoleRoute, include_in_schema=False)

JobIdQuery = Annotated[Identifier | None, Query(min_length=1, max_length=255)]
FileNameQuery = Annotated[str, Query(max_length=255)]


@router.get("/make")
async def make_page(
    request: Request, job: JobIdQuery = None, kind: str | None = None, source: JobIdQuery = None, file: FileNameQuery = ""
) -> Response:
    """The order form. With `job`, filled in from that job's order, beside the job's progress; with `source`, for an edit of its `file`."""
    view = await load_job_view(request, job) if job else None
    fields = form_from_order(view.progress.order, view.job.job_id) if view else form_from_order(None)
    if kind in ("image_order", "ad"):
        fields["kind"] = kind
    if source and file:
        fields["source_ref"] = f"{source}/{file}"
    return render_make_page(request, fields, view)


@router.post("/make")
async def submit_order(request: Request) -> Response:
    """Everything but the content of the pictures is checked before one is stored."""
    form: SubmittedForm = request.state.form
    services, caller = services_of(request), caller_of(request)
    try:
        order = order_from_form(form, dict.fromkeys(check_pictures(form), NOT_STORED))
        if problems := find_drawing_problems(order, services.settings):
            errors = {"artist" if name == "signature" else name: problem for name, problem in problems.items()}
            return refuse_order(request, form, errors)
        if pictures := await store_pictures(request, form):
            order = order_from_form(form, pictures)
    except ValidationError as error:
        return refuse_order(request, form, field_errors(error, form))
    except InvalidPictures as error:
        return refuse_order(request, form, error.errors)
    submission = await services.jobs.submit(
        order, seconds=services.settings.job_seconds, wait=0.0, tenant=caller, caller=caller, idempotency_key=None
    )
    return RedirectResponse(f"{MAKE_PATH}?job={submission.job_id}", 303)


def refuse_order(request: Request, form: SubmittedForm, errors: dict[str, str]) -> Response:
    """The form with its errors and what was entered; a browser does not let a page choose the files again."""
    return render_make_page(request, {"kind": DEFAULTS["kind"]} | form, None, errors, 422, files_lost=bool(form.files))


def render_make_page(
    request: Request,
    fields: dict[str, Any],
    view: ConsoleJobView | None,
    errors: dict[str, str] | None = None,
    status: int = 200,
    *,
    files_lost: bool = False,
) -> Response:
    settings = services_of(request).settings
    return render_page(
        request,
        "make.html",
        status,
        fields=fields,
        errors=errors or {},
        view=view,
        schedulers=SCHEDULERS,
        output_formats=OUTPUT_FORMATS,
        models=settings.image_models,
        loras=settings.image_loras,
        lora_rows=LORA_ROWS,
        has_loras=any(lora_rows(fields)),
        kept={name: fields[name] for name in KEPT_FIELDS if fields.get(name)},
        has_further=any(fields.get(name) for name in FURTHER_FIELDS),
        files_lost=files_lost,
        controlnets=settings.image_controlnets,
        links=picture_links(fields, public_path(request, f"{CONSOLE_PATH}/jobs")),
    )
