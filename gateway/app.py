"""The gateway's application. It declares the queues it asks, so that a question is answered late rather than refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from bus.outbox import open_outbox
from bus.request_reply import open_requests
from bus.settings import BusSettings
from bus.topology import declare_commands
from contracts.steps import COMMANDS
from gateway import jobs
from gateway.problems import answer_with_problems
from gateway.settings import GatewaySettings

QUESTIONS = ("job.get", "job.list")


def create_app(bus: BusSettings, settings: GatewaySettings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_outbox(bus) as outbox:
            async with outbox.channel() as channel:
                await declare_commands(channel, (*COMMANDS, *QUESTIONS))
            async with open_requests(outbox) as requests:
                app.state.requests, app.state.outbox, app.state.settings = requests, outbox, settings
                yield

    app = FastAPI(title="Atelier", lifespan=lifespan, description="Generative media over RabbitMQ: publish, await, ask.")
    app.include_router(jobs.router)
    app.add_api_route("/health", health, tags=["health"])
    answer_with_problems(app)
    return app


async def health(request: Request) -> JSONResponse:
    """Whether the gateway has its broker."""
    connected = request.app.state.outbox.connected
    return JSONResponse({"status": "healthy" if connected else "unavailable", "broker": connected}, 200 if connected else 503)
