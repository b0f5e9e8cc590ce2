"""The gateway's application. It declares the queues it asks, so that a question is answered late rather than refused."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.cors import CORSMiddleware

from bus.events import open_follower
from bus.health import Health
from bus.health_checks import broker_check, store_check
from bus.health_server import open_health
from bus.health_settings import HealthSettings
from bus.outbox import open_outbox
from bus.request_reply import open_requests
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from bus.topology import declare_commands
from contracts.steps import COMMANDS
from gateway import chat, conversations, dead_letters, feedly, jobs, openai_chat, openai_images, openai_models, pages, text_status, vertex
from gateway.console.pages import ROUTERS
from gateway.console.sessions import Sessions
from gateway.document import Documented
from gateway.door import Door
from gateway.keys import Keys
from gateway.placing import Counter
from gateway.problems import answer_with_problems
from gateway.settings import GatewaySettings
from gateway.text_status import Known, TextStatuses, health_of
from gateway.tracing import Tracing

QUESTIONS = (
    "job.get",
    "job.list",
    "job.events",
    "job.claim",
    *dead_letters.QUESTIONS,
    *vertex.QUESTIONS,
    *conversations.QUESTIONS,
    *text_status.QUESTIONS,
)
TOLD_TO_PAGES = ["X-Request-Id", "traceparent", "RateLimit", "RateLimit-Policy", "Retry-After", "Location", "Preference-Applied"]


def create_app(
    bus: BusSettings, settings: GatewaySettings, store: StoreSettings | None = None, health_settings: HealthSettings | None = None
) -> FastAPI:
    """Raises OpenDoor when it would listen to the world without a key.

    Metrics are not behind this door but on the health server's own port: what one tenant does is not shown to another.
    """
    vertex_settings = vertex.VertexSettings()
    keyless = vertex_settings.keyless
    keys = Keys(settings, keyless)
    sessions = Sessions(keys, settings.console_session_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            health = Health(health_settings or HealthSettings(port=None))
            state = app.state
            state.health_url = await stack.enter_async_context(open_health(health))
            outbox = await stack.enter_async_context(open_outbox(bus))
            health.parts["broker"] = broker_check(outbox)
            async with outbox.channel() as channel:
                await declare_commands(channel, (*COMMANDS, *QUESTIONS))
            requests = await stack.enter_async_context(open_requests(outbox))
            follower = await stack.enter_async_context(open_follower(outbox))
            state.requests, state.outbox, state.follower = requests, outbox, follower
            state.store = await stack.enter_async_context(open_claims(store)) if store else None
            state.text_statuses = TextStatuses(requests)
            state.counter = Counter(requests, outbox, follower, settings.question_seconds)
            if state.store:
                health.parts["store"] = store_check(state.store)
            health.started = True
            yield

    app = Documented(title="Atelier", lifespan=lifespan, description="Generative media over RabbitMQ: publish, await, ask.")
    app.state.streams = 0
    app.state.settings, app.state.sessions = settings, sessions
    app.include_router(jobs.router)
    app.include_router(dead_letters.router)
    app.include_router(vertex.open_router(vertex_settings))
    app.include_router(feedly.router)
    for room in (chat, conversations, text_status, openai_chat, openai_images, openai_models):
        app.include_router(room.router)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/health", tell_health, tags=["health"], response_model=Hands, responses={503: {"model": Hands}})
    app.include_router(pages.router)
    answer_with_problems(app)
    app.add_middleware(Door, settings=settings, keys=keys, keyless=keyless, sessions=sessions)
    if settings.cors_origins:
        origins = list(settings.cors_origins)
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=TOLD_TO_PAGES, max_age=600
        )
    app.add_middleware(Tracing)
    return app


class Hands(BaseModel):
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
    connected = state.outbox.connected
    known = await state.text_statuses.latest() if connected else Known()
    hands = {"waiting": state.requests.waiting, "streams": state.streams, "late_replies": state.requests.late_replies}
    status = "unavailable" if not connected else "loading" if known.loading else "healthy"
    told = {"status": status, "broker": connected} | hands | health_of(known, state.text_statuses.uptime)
    return JSONResponse(told, 200 if connected else 503)
