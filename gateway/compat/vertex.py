"""Document 000's API, as Vertex AI calls it: `POST /predict` answers questions about pictures, `GET /health` tells whether it would.

Each instance is a message of its own; the predictions come in the instances' order, or the whole request fails together.
"""

import asyncio
import base64
import binascii
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PermanentError, PublishError, TemporaryError
from contracts.wire import Step
from gateway.callers import caller_of
from gateway.deadlines import request_timeout
from gateway.problems import ERROR_FORMATS, HttpProblem
from gateway.settings import GatewaySettings

QUERY_STEPS = ("consult.ready",)
MAX_INLINE_CHARS = 256 << 10
"""A longer picture goes to the store, and a claim on it into the message."""


class VertexSettings(BaseSettings):
    """Vertex AI's own variables. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    http_port: int | None = Field(
        None, ge=1, le=65535, validation_alias="AIP_HTTP_PORT", description="Where Vertex AI calls; GATEWAY_PORT elsewhere."
    )
    predict_route: str = Field("/predict", validation_alias="AIP_PREDICT_ROUTE", description="Where questions come in.")
    health_route: str = Field("/health", validation_alias="AIP_HEALTH_ROUTE", description="Where health is asked for.")
    mode: str | None = Field(None, validation_alias="AIP_MODE", description="Set by Vertex AI alone.")
    health_needs_consult: bool | None = Field(
        None,
        validation_alias="GATEWAY_HEALTH_NEEDS_CONSULT",
        description="/health is 503 until a consult actor answers. None: only on Vertex AI, since a gateway may serve without one.",
    )
    predict_seconds: float = Field(
        300.0, gt=0, validation_alias="GATEWAY_PREDICT_SECONDS", description="As long as the source system's caller waits."
    )
    ready_seconds: float = Field(
        4.0, gt=0, validation_alias="GATEWAY_READY_SECONDS", description="How long an actor may take to say that it is ready."
    )
    max_instances: int = Field(64, ge=1, validation_alias="GATEWAY_MAX_INSTANCES", description="Questions in one request, at most.")

    @property
    def on_vertex(self) -> bool:
        return self.mode is not None or self.http_port is not None

    @property
    def keyless(self) -> frozenset[str]:
        """What Vertex AI calls: it knows no key, and nobody reaches the container but through it. All other paths still ask for one."""
        return frozenset({self.predict_route, self.health_route}) if self.on_vertex else frozenset()

    @property
    def needs_consult(self) -> bool:
        return self.on_vertex if self.health_needs_consult is None else self.health_needs_consult


def apply_vertex_settings(gateway: GatewaySettings, vertex: VertexSettings) -> GatewaySettings:
    """Where Vertex AI calls, when it is Vertex AI that runs us: every address of the container, its port, bodies of 10 MB."""
    if not vertex.on_vertex:
        return gateway
    return gateway.model_copy(
        update={
            "host": "0.0.0.0",  # noqa: S104
            "port": vertex.http_port or gateway.port,
            "max_body_bytes": max(gateway.max_body_bytes, 10 << 20),
        }
    )


class Instance(BaseModel):
    """One question."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field("", max_length=20_000)
    image: str | None = Field(None, description="base64.")


class PredictRequest(BaseModel):
    """What Vertex AI sends."""

    model_config = ConfigDict(extra="allow")

    instances: list[Instance] = Field(max_length=1000)
    parameters: dict[str, Any] | None = None


class VertexError(BaseModel):
    """What went wrong, as the source system says it."""

    error: str = Field(examples=["Model not ready"])


class Predictions(BaseModel):
    predictions: list[str]


def vertex_error(status: int, message: str) -> JSONResponse:
    """An error as the source system says it."""
    return JSONResponse({"error": message}, status)


def create_router(settings: VertexSettings) -> APIRouter:
    """The routes where Vertex AI expects them."""
    router = APIRouter(tags=["vertex"])

    @router.post(settings.predict_route, response_model=Predictions, responses={500: {"model": VertexError}, 503: {"model": VertexError}})
    async def predict(request: Request) -> Any:
        """Ask about pictures. `instances`: `prompt` and, if there is one, `image` as base64."""
        return await predict_all(request, settings)

    if settings.needs_consult or settings.health_route != "/health":

        @router.get(settings.health_route)
        async def health(request: Request) -> JSONResponse:
            """Whether a question would be answered."""
            return await health_response(request, settings)

    ERROR_FORMATS[settings.predict_route] = lambda refused: {"error": refused.detail}
    return router


async def health_response(request: Request, settings: VertexSettings) -> JSONResponse:
    ready = await is_ready(request, settings)
    return JSONResponse({"status": "healthy"} if ready else {"status": "loading"}, 200 if ready else 503)


async def is_ready(request: Request, settings: VertexSettings) -> bool:
    """Whether a consult actor says so in time."""
    try:
        await request.app.state.requests.request("consult.ready", {}, seconds=settings.ready_seconds)
    except (ReplyFault, ReplyTimeout, PublishError):
        return False
    return True


async def predict_all(request: Request, settings: VertexSettings) -> Any:
    """Every instance at once. The first failure ends the others."""
    if not await is_ready(request, settings):
        return vertex_error(503, "Model not ready")
    failure: BaseException | None = None
    said: list[asyncio.Task[str]] = []
    try:
        asked = PredictRequest.model_validate_json(await request.body())
        if len(asked.instances) > settings.max_instances:
            return vertex_error(500, f"{len(asked.instances)} instances, at most {settings.max_instances} are answered at once")
        seconds = request_timeout(request, settings.predict_seconds)
        async with asyncio.TaskGroup() as group:
            said = [group.create_task(predict_one(request, instance, asked.parameters or {}, seconds)) for instance in asked.instances]
    except* (ReplyFault, ReplyTimeout, PublishError, PermanentError, TemporaryError, HttpProblem, ValueError) as failures:
        failure = first_failure(failures)
    return vertex_error(500, str(failure)) if failure else Predictions(predictions=[task.result() for task in said])


def first_failure(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first failure of a group, however deep."""
    cause: BaseException = group.exceptions[0]
    return first_failure(cause) if isinstance(cause, BaseExceptionGroup) else cause


async def predict_one(request: Request, instance: Instance, parameters: dict[str, Any], seconds: float) -> str:
    body: dict[str, Any] = {"prompt": instance.prompt} | await image_fields(request, instance.image)
    if isinstance(limit := parameters.get("max_new_tokens"), int):
        body["max_new_tokens"] = limit
    reply = await request.app.state.requests.request(Step.CONSULT.value, body, seconds=seconds, tenant=caller_of(request))
    return str(reply["prediction"])


async def image_fields(request: Request, image: str | None) -> dict[str, Any]:
    """The picture as the command carries it: small ones inside, larger ones as a claim. Raises PermanentError("image-unreadable")."""
    store = getattr(request.app.state, "store", None)
    if not image:
        return {}
    if len(image) <= MAX_INLINE_CHARS or store is None:
        return {"image": image}
    try:
        data = await to_thread.run_sync(lambda: base64.b64decode(image.partition("base64,")[2] or image, validate=True))
    except (binascii.Error, ValueError) as problem:
        raise PermanentError("image-unreadable", f"the image is no base64: {problem}") from problem
    claim = await store.write(data, media_type="application/octet-stream")
    return {"picture": claim.model_dump(mode="json", exclude_none=True)}
