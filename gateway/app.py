"""The gateway's application. It declares the queues it asks, so that a question is answered late rather than refused."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from bus.events import open_follower
from bus.outbox import open_outbox
from bus.request_reply import open_requests
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from bus.topology import declare_commands
from contracts.steps import COMMANDS
from gateway import dead_letters, feedly, jobs, vertex
from gateway.door import Door
from gateway.keys import Keys
from gateway.placing import Counter
from gateway.problems import answer_with_problems
from gateway.settings import GatewaySettings
from gateway.tracing import Tracing

QUESTIONS = ("job.get", "job.list", "job.events", "job.claim", *dead_letters.QUESTIONS, *vertex.QUESTIONS)
TOLD_TO_PAGES = ["X-Request-Id", "traceparent", "RateLimit", "RateLimit-Policy", "Retry-After", "Location", "Preference-Applied"]


def create_app(bus: BusSettings, settings: GatewaySettings, store: StoreSettings | None = None) -> FastAPI:
    """Raises OpenDoor when it would listen to the world without a key."""
    keys = Keys(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            outbox = await stack.enter_async_context(open_outbox(bus))
            async with outbox.channel() as channel:
                await declare_commands(channel, (*COMMANDS, *QUESTIONS))
            requests = await stack.enter_async_context(open_requests(outbox))
            follower = await stack.enter_async_context(open_follower(outbox))
            state = app.state
            state.requests, state.outbox, state.settings, state.follower = requests, outbox, settings, follower
            state.store = await stack.enter_async_context(open_claims(store)) if store else None
            state.counter = Counter(requests, outbox, follower, settings.question_seconds)
            yield

    app = FastAPI(title="Atelier", lifespan=lifespan, description="Generative media over RabbitMQ: publish, await, ask.")
    app.state.streams = 0
    app.include_router(jobs.router)
    app.include_router(dead_letters.router)
    app.include_router(vertex.open_router(vertex.VertexSettings()))
    app.include_router(feedly.router)
    app.add_api_route("/health", health, tags=["health"])
    answer_with_problems(app)
    app.add_middleware(Door, settings=settings, keys=keys)
    if settings.cors_origins:
        origins = list(settings.cors_origins)
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=TOLD_TO_PAGES, max_age=600
        )
    app.add_middleware(Tracing)
    return app


async def health(request: Request) -> JSONResponse:
    """Whether the gateway has its broker, and how much is in its hands."""
    state = request.app.state
    connected = state.outbox.connected
    hands = {"waiting": state.requests.waiting, "streams": state.streams, "late_replies": state.requests.late_replies}
    return JSONResponse({"status": "healthy" if connected else "unavailable", "broker": connected} | hands, 200 if connected else 503)
