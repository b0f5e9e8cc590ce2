"""The skin-consult API for Vertex AI: `POST /predict` answers questions about images, `GET /health` reports whether it is ready.

Each instance is one command. The predictions have the order of the instances; if one fails, the whole request fails.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.errors import PermanentError, PublishError, TemporaryError
from bus.masking import mask_error
from contracts.wire import Step
from gateway.callers import caller_of
from gateway.commands import CommandClient
from gateway.deadlines import request_timeout
from gateway.json_body import validate_body
from gateway.problems import REQUEST_ERRORS, FormattedRoute, HttpProblem
from gateway.services import services_of
from gateway.settings import GatewaySettings
from gateway.strict_model import HttpModel
from gateway.text.uploads import MAX_INLINE_CHARS, store_base64

QUERY_STEPS = ("consult.ready",)


class VertexSettings(BaseSettings):
    """Variables that Vertex AI sets, and settings of its API. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    http_port: int | None = Field(
        None, ge=1, le=65535, validation_alias="AIP_HTTP_PORT", description="The port that Vertex AI calls. None: GATEWAY_PORT."
    )
    predict_route: str = Field("/predict", validation_alias="AIP_PREDICT_ROUTE", description="The path of predictions.")
    health_route: str = Field("/health", validation_alias="AIP_HEALTH_ROUTE", description="The path of the health check.")
    mode: str | None = Field(None, validation_alias="AIP_MODE", description="Set by Vertex AI only.")
    health_needs_consult: bool | None = Field(
        None,
        validation_alias="GATEWAY_HEALTH_NEEDS_CONSULT",
        description="/health is 503 until a consult actor is ready. None: where a variable AIP_… names a port or a route.",
    )
    predict_seconds: float = Field(
        300.0, gt=0, validation_alias="GATEWAY_PREDICT_SECONDS", description="The deadline of a prediction without X-Request-Timeout."
    )
    ready_seconds: float = Field(
        4.0, gt=0, validation_alias="GATEWAY_READY_SECONDS", description="How long a consult actor may take to report that it is ready."
    )
    max_instances: int = Field(64, ge=1, validation_alias="GATEWAY_MAX_INSTANCES", description="The most instances in one request.")

    @property
    def on_vertex(self) -> bool:
        return self.mode is not None or self.http_port is not None

    @property
    def keyless(self) -> frozenset[str]:
        """The paths that Vertex AI calls without an API key; only Vertex AI can reach its container. All other paths need a key."""
        return frozenset({self.predict_route, self.health_route}) if self.on_vertex else frozenset()

    @property
    def needs_consult(self) -> bool:
        """Whether this is the source system's server: on Vertex AI, or where its routes are named."""
        names_a_route = not {"predict_route", "health_route"}.isdisjoint(self.model_fields_set)
        return self.on_vertex or names_a_route if self.health_needs_consult is None else self.health_needs_consult


def apply_vertex_settings(gateway: GatewaySettings, vertex: VertexSettings) -> GatewaySettings:
    """On Vertex AI: listen on all addresses of the container, on its port."""
    if not vertex.on_vertex:
        return gateway
    return gateway.model_copy(update={"host": "0.0.0.0", "port": vertex.http_port or gateway.port})  # noqa: S104


class Instance(HttpModel):
    """A prompt, with or without an image."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field("", max_length=20_000)
    image: str | None = Field(None, description="base64, with or without a `data:` prefix; at most MAX_UPLOAD_BYTES.")


class PredictRequest(HttpModel):
    """A request as Vertex AI sends it."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"instances": [{"prompt": "왜 건조한가요?", "image": "iVBORw0KGgo="}]}]}
    )

    instances: list[Instance] = Field(max_length=1000)
    parameters: dict[str, Any] | None = None


class VertexError(HttpModel):
    """An error, as the source system reports it."""

    error: str = Field(examples=["Model not ready"])


class Predictions(HttpModel):
    predictions: list[str]


class VertexRoute(FormattedRoute):
    @staticmethod
    def error_format(problem: HttpProblem) -> dict[str, Any]:
        return {"error": problem.detail}


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {500: {"model": VertexError}, 503: {"model": VertexError}}


def predict_body() -> dict[str, Any]:
    """OpenAPI's `requestBody`; the body is validated by the handler, whose errors are this API's."""
    schema = PredictRequest.model_json_schema()
    schema["properties"]["instances"]["items"] = schema.pop("$defs")["Instance"]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def vertex_error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def create_router(settings: VertexSettings) -> APIRouter:
    """The routes at the paths that Vertex AI's variables name."""
    router, readiness = APIRouter(tags=["vertex"]), Readiness(settings.ready_seconds)

    async def predict(request: Request) -> Any:
        """Answer questions about images. `instances`: `prompt` and, optionally, `image` as base64."""
        return await predict_all(request, settings) if await readiness.check(request) else vertex_error(503, "Model not ready")

    async def health(request: Request) -> JSONResponse:
        """Whether a consult actor is ready."""
        ready = await readiness.check(request)
        return JSONResponse({"status": "healthy" if ready else "loading"}, 200 if ready else 503)

    router.add_api_route(
        settings.predict_route,
        predict,
        methods=["POST"],
        response_model=Predictions,
        responses=ERROR_RESPONSES,
        openapi_extra=predict_body(),
        route_class_override=VertexRoute,
    )
    if settings.needs_consult or settings.health_route != "/health":
        router.add_api_route(settings.health_route, health, methods=["GET"])
    return router


class Readiness:
    """Asks the consult actors whether one is ready: one question at a time, whose answer all requests share that come meanwhile."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asking: asyncio.Task[bool] | None = None

    async def check(self, request: Request) -> bool:
        """Whether a consult actor replies in time."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(services_of(request).commands))
        return await asyncio.shield(self._asking)

    async def _ask(self, commands: CommandClient) -> bool:
        try:
            await commands.query("consult.ready", seconds=self._seconds)
        except REQUEST_ERRORS:
            return False
        return True


async def predict_all(request: Request, settings: VertexSettings) -> Any:
    """All instances concurrently, once their images have been stored one after another. The first failure cancels the others."""
    failure: BaseException | None = None
    predictions: list[asyncio.Task[str]] = []
    try:
        body = await validate_body(request, PredictRequest)
        if len(body.instances) > settings.max_instances:
            return vertex_error(500, f"{len(body.instances)} instances, at most {settings.max_instances} are allowed in one request")
        seconds = request_timeout(request.headers, services_of(request).settings, settings.predict_seconds)
        commands = [await build_command(request, instance, body.parameters or {}) for instance in body.instances]
        async with asyncio.TaskGroup() as group:
            predictions = [group.create_task(predict_one(request, command, seconds)) for command in commands]
    except* (*REQUEST_ERRORS, PermanentError, TemporaryError, HttpProblem, ValueError) as failures:
        failure = first_failure(failures)
    if isinstance(failure, TemporaryError | PublishError):
        raise failure  # A 503 with Retry-After.
    return vertex_error(500, mask_error(failure)) if failure else Predictions(predictions=[task.result() for task in predictions])


def first_failure(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first exception of a group, at any depth."""
    cause: BaseException = group.exceptions[0]
    return first_failure(cause) if isinstance(cause, BaseExceptionGroup) else cause


async def build_command(request: Request, instance: Instance, parameters: dict[str, Any]) -> dict[str, Any]:
    """The consult command, with a short image inline, or a claim on a long one. Raises HttpProblem(400, 413, 503), TemporaryError."""
    command: dict[str, Any] = {"prompt": instance.prompt}
    if isinstance(max_new_tokens := parameters.get("max_new_tokens"), int):
        command["max_new_tokens"] = max_new_tokens
    image, instance.image = instance.image, None  # held once: the whole body is in memory, too
    if image and len(image) > MAX_INLINE_CHARS:
        claim = await store_base64(request, image, caller_of(request))
        return command | {"picture": claim.model_dump(mode="json", exclude_none=True)}
    return command | ({"image": image} if image else {})


async def predict_one(request: Request, command: dict[str, Any], seconds: float) -> str:
    reply = await services_of(request).commands.call(request, Step.CONSULT.value, command, seconds=seconds)
    return str(reply["prediction"])
