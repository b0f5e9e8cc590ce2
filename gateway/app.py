"""The gateway's application. It declares the queues it asks, so that a question is answered late rather than refused."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.cors import CORSMiddleware

from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import open_request_client
from bus.amqp.subscriptions import open_job_subscription
from bus.amqp.topology import declare_command_queues
from bus.observability.health import Health
from bus.observability.health_checks import broker_check, store_check
from bus.observability.health_server import serve_health
from bus.observability.settings import HealthSettings
from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.steps import COMMANDS
from gateway.admin import dead_letters
from gateway.compat import ad_validation, chat, conversations, text_status, vertex
from gateway.console.router import ROUTERS
from gateway.docs import asyncapi
from gateway.docs.openapi import DocumentedApp
from gateway.jobs import routes
from gateway.jobs.submission import JobService
from gateway.middleware.admission import AdmissionMiddleware
from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.sessions import Sessions
from gateway.middleware.tracing import TracingMiddleware
from gateway.openai import chat as openai_chat
from gateway.openai import images, models
from gateway.problems import install_error_handlers
from gateway.settings import GatewaySettings
from gateway.text.status import TextStatusCache, TextStatusSnapshot, health_fields

QUERY_STEPS = (
    "job.get",
    "job.list",
    "job.events",
    "job.claim",
    *dead_letters.QUERY_STEPS,
    *vertex.QUERY_STEPS,
    *conversations.QUERY_STEPS,
    *text_status.QUERY_STEPS,
)
EXPOSED_HEADERS = ["X-Request-Id", "traceparent", "RateLimit", "RateLimit-Policy", "Retry-After", "Location", "Preference-Applied"]


def create_app(
    bus: BusSettings, settings: GatewaySettings, store: StoreSettings | None = None, health_settings: HealthSettings | None = None
) -> FastAPI:
    """Raises OpenDoor when it would listen to the world without a key.

    Metrics are not behind this door but on the health server's own port: what one tenant does is not shown to another.
    """
    vertex_settings = vertex.VertexSettings()
    keyless = vertex_settings.keyless
    keys = ApiKeys(settings, keyless)
    sessions = Sessions(keys, settings.console_session_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            health = Health(health_settings or HealthSettings(port=None))
            state = app.state
            state.health_url = await stack.enter_async_context(serve_health(health))
            outbox = await stack.enter_async_context(open_publisher(bus))
            health.checks["broker"] = broker_check(outbox)
            async with outbox.channel() as channel:
                await declare_command_queues(channel, (*COMMANDS, *QUERY_STEPS))
            requests = await stack.enter_async_context(open_request_client(outbox))
            follower = await stack.enter_async_context(open_job_subscription(outbox))
            state.requests, state.publisher, state.subscription = requests, outbox, follower
            state.store = await stack.enter_async_context(open_claim_store(store)) if store else None
            state.text_status = TextStatusCache(requests)
            state.jobs = JobService(requests, outbox, follower, settings.question_seconds)
            if state.store:
                health.checks["store"] = store_check(state.store)
            health.started = True
            yield

    app = DocumentedApp(title="Atelier", lifespan=lifespan, description="Generative media over RabbitMQ: publish, await, ask.")
    app.state.streams = 0
    app.state.settings, app.state.sessions = settings, sessions
    app.include_router(routes.router)
    app.include_router(dead_letters.router)
    app.include_router(vertex.create_router(vertex_settings))
    app.include_router(ad_validation.router)
    for room in (chat, conversations, text_status, openai_chat, images, models):
        app.include_router(room.router)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/health", tell_health, tags=["health"], response_model=HealthReport, responses={503: {"model": HealthReport}})
    app.include_router(asyncapi.router)
    install_error_handlers(app)
    app.add_middleware(AdmissionMiddleware, settings=settings, keys=keys, keyless=keyless, sessions=sessions)
    if settings.cors_origins:
        origins = list(settings.cors_origins)
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED_HEADERS, max_age=600
        )
    app.add_middleware(TracingMiddleware)
    return app


class HealthReport(BaseModel):
    """Whether there is a broker; how many replies are awaited, streams open, replies come too late; and how the writing actor is."""

    model_config = ConfigDict(extra="allow")

    status: str = Field(examples=["healthy"])
    broker: bool
    waiting: int
    streams: int
    late_replies: int


async def tell_health(request: Request) -> JSONResponse:
    """Whether the gateway has its broker, how much is in its hands, and how the writing actor is (`loading` until its model is there)."""
    state = request.app.state
    connected = state.publisher.connected
    known = await state.text_status.latest() if connected else TextStatusSnapshot()
    hands = {"waiting": state.requests.pending_count, "streams": state.streams, "late_replies": state.requests.late_replies}
    status = "unavailable" if not connected else "loading" if known.loading else "healthy"
    told = {"status": status, "broker": connected} | hands | health_fields(known, state.text_status.uptime)
    return JSONResponse(told, 200 if connected else 503)
