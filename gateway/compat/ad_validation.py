"""The ad-validation API: `POST /api/yh/llava/stage1/validate` and `…/stage2/judge`, with its fields, statuses and texts."""

from functools import partial
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError
from contracts.validate import FontRecommendation
from contracts.verdict import Evidence
from contracts.wire import Step
from gateway.callers import resolve_tenant, tenant_of
from gateway.compat.legacy_route import LegacyRoute
from gateway.deadlines import request_timeout
from gateway.services import services_of
from gateway.strict_model import HttpModel

PREFIX = "/api/yh/llava"
TENANT_ONLY_FAULT_CODES = frozenset({"variant-unknown", "render-foreign"})
"""Faults of a request for a tenant that the installation itself may not have. They change nothing."""
DEFAULT_TIMEOUT_SECONDS = 1800.0
"""As long as the source system's pipeline waits for a step."""

STATUS_BY_FAULT_CODE = {
    "invalid-uuid": 400,
    "invalid-message": 422,
    "job-mismatch": 400,
    "tenant-mismatch": 400,
    "image-file-missing": 400,
    "image-load-failed": 400,
    "not-overlaid": 400,
    "picture-unnamed": 400,
    "variant-unknown": 404,
    "job-not-found": 404,
    "asset-unknown": 404,
    "asset-absent": 404,
    "overlay-unknown": 404,
    "render-absent": 404,
    "tenant-foreign": 403,
    "render-foreign": 403,
}
"""The faults that the source system reports; all others are a 500."""

router = APIRouter(prefix=PREFIX, tags=["feedly"], route_class=LegacyRoute)


class ValidateIn(HttpModel):
    """A request for stage 1."""

    job_variants_id: str
    job_id: str
    tenant_id: str
    asset_url: str | None = None
    ad_copy_text: str | None = Field(None, max_length=4000)
    prompt: str | None = Field(None, max_length=4000)


class ValidateOut(HttpModel):
    """The verdict of stage 1. Extensions: `repaired`, and `defaulted` for the default verdict after answers that could not be read."""

    job_id: str
    vlm_trace_id: str
    is_valid: bool
    image_quality_ok: bool
    relevance_score: float
    analysis: str
    issues: list[str]
    recommendations: list[str]
    font_recommendation: FontRecommendation | None = None
    repaired: bool = False
    defaulted: bool = False


class JudgeIn(HttpModel):
    """A request for stage 2."""

    job_variants_id: str
    job_id: str
    tenant_id: str
    overlay_id: str | None = None
    render_asset_url: str | None = None


class JudgeOut(HttpModel):
    """The verdict of stage 2. Extensions: `evidence`, measurements besides the model's opinion; `repaired`; `defaulted`, as in stage 1."""

    job_id: str
    vlm_trace_id: str
    on_brief: bool
    occlusion: bool
    contrast_ok: bool
    cta_present: bool
    analysis: str
    issues: list[str]
    evidence: Evidence = Evidence()
    repaired: bool = False
    defaulted: bool = False


class ErrorDetail(HttpModel):
    """An error, as the source system reports it."""

    detail: str = Field(examples=["Job tenant_id mismatch"])


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ErrorDetail} for status in (400, 403, 404, 500)}


@router.post("/stage1/validate", response_model=ValidateOut, responses=ERROR_RESPONSES)
async def validate(request: Request, body: ValidateIn) -> Any:
    """Judge whether a variant's image suits its advertisement."""
    return await request_verdict(request, Step.VALIDATE, body, ValidateOut, "LLaVa validation failed")


@router.post("/stage2/judge", response_model=JudgeOut, responses=ERROR_RESPONSES)
async def judge(request: Request, body: JudgeIn) -> Any:
    """Judge a finished advertisement. The variant must be at (overlay, done)."""
    return await request_verdict(request, Step.JUDGE, body, JudgeOut, "LLaVa judge failed")


async def request_verdict(
    request: Request, step: Step, body: ValidateIn | JudgeIn, response_model: type[BaseModel], failure_text: str
) -> Any:
    """The step's verdict, or its fault in the source system's format. Invalid UUIDs are rejected before publishing."""
    for value in (body.job_variants_id, body.job_id, getattr(body, "overlay_id", None)):
        try:
            UUID(value or body.job_id)
        except ValueError as error:
            return detail_response(400, f"Invalid UUID format: {error}")
    tenant = resolve_tenant(request, body.tenant_id)
    try:
        reply = await call_step(request, step, body, tenant)
    except ReplyFault as fault:
        status = STATUS_BY_FAULT_CODE.get(fault.fault.code, 500)
        return detail_response(status, fault.fault.message if status != 500 else f"{failure_text}: {fault.fault.message}")
    except (ReplyTimeout, PublishError) as error:
        return detail_response(500, f"{failure_text}: {error}")
    return response_model.model_validate(reply)


async def call_step(request: Request, step: Step, body: ValidateIn | JudgeIn, tenant: str | None) -> dict[str, Any]:
    """The step's reply for the tenant. Where no key binds the caller to it, what the tenant may not do is asked for the installation.

    So the source system's callers still get its own answer about another tenant's variant, and may name any rendered picture.
    """
    services = services_of(request)
    seconds = request_timeout(request.headers, services.settings, DEFAULT_TIMEOUT_SECONDS)
    command = body.model_dump(exclude_none=True) | {"default_verdict": True}
    ask = partial(services.commands.call, request, step.value, command, seconds=seconds)
    try:
        return await ask(tenant=tenant)
    except ReplyFault as fault:
        if tenant_of(request) or fault.fault.code not in TENANT_ONLY_FAULT_CODES:
            raise
    return await ask(tenant=None)


def detail_response(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, status)
