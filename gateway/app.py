"""The application: the services, the routes of the served APIs, and the middleware around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from bus.observability.health import Health
from bus.observability.health_server import serve_health
from bus.observability.settings import HealthSettings
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from contracts.steps import COMMANDS
from gateway.apis import Api, query_steps, served_apis
from gateway.compat.vertex import VertexSettings
from gateway.docs.openapi import DocumentedApp
from gateway.middleware.admission import AdmissionMiddleware
from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.head import HeadMiddleware
from gateway.middleware.origins import OriginMiddleware
from gateway.middleware.proxies import ProxyMiddleware
from gateway.middleware.sessions import Sessions
from gateway.middleware.tracing import TracingMiddleware
from gateway.problems import error_formats, install_error_handlers
from gateway.services import open_services, services_of
from gateway.settings import GatewaySettings
from gateway.strict_model import HttpModel
from gateway.text.status import TextStatusSnapshot, health_fields

EXPOSED_HEADERS = ["X-Request-Id", "traceparent", "RateLimit", "RateLimit-Policy", "Retry-After", "Location", "Preference-Applied"]


def create_app(
    bus: BusSettings,
    settings: GatewaySettings,
    store: StoreSettings | None = None,
    health_settings: HealthSettings | None = None,
    vertex: VertexSettings | None = None,
) -> FastAPI:
    """Raises InsecureBindError on a public address without an API key.

    Metrics are served on the health server's port, not here, since they show the activity of all tenants.
    """
    vertex = vertex or VertexSettings()
    apis = served_apis(settings, vertex)
    keyless = vertex.keyless if "vertex" in settings.apis else frozenset()
    keys = ApiKeys(settings, keyless)
    sessions = Sessions(keys, settings.console_session_seconds, settings.console_session_max_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        health = Health(health_settings or HealthSettings(port=None))
        steps = (*COMMANDS, *query_steps(apis))
        async with serve_health(health) as url, open_services(bus, settings, store, sessions, health, steps) as services:
            app.state.services, app.state.health_url = services, url
            health.started = True
            yield

    app = DocumentedApp(
        title="Atelier",
        lifespan=lifespan,
        description="Generative media over RabbitMQ.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # `gateway/docs/openapi.py` serves it, with the address that its reader uses
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # our own middleware does that
    )
    routes = _include_routes(app, apis)
    install_error_handlers(app, routes)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(
        AdmissionMiddleware,
        settings=settings,
        keys=keys,
        keyless=keyless,
        sessions=sessions if "console" in settings.apis else None,
        upload_paths=frozenset[str]().union(*(api.upload_paths for api in apis)),
    )
    form_paths = frozenset[str]().union(*(api.form_paths for api in apis))
    app.add_middleware(OriginMiddleware, settings=settings, keys_needed=keys.needed, form_paths=form_paths)
    app.add_middleware(TracingMiddleware)
    if settings.cors_origins:  # outside of the middleware that answers unexpected errors: a page reads those, too
        origins = list(settings.cors_origins)
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network="*" not in origins,
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
        )
    app.add_middleware(ProxyMiddleware, settings=settings, routes=routes)
    ProxyMiddleware(app, settings, routes)  # Starlette opens it at the first request: a wrong setting is reported now
    return app


def _include_routes(app: FastAPI, apis: tuple[Api, ...]) -> list[Route]:
    """Returns all routes. `/health` comes last: Vertex AI's own health route may have the same path.

    The routes are the application's own: FastAPI looks a route of an included router up twice, in each router before it as well.
    """
    routers = [router for api in apis for router in api.routers]
    app.state.error_formats = error_formats(routers)
    for router in routers:
        app.router.routes.extend(router.routes)
    app.add_api_route(
        "/health",
        report_health,
        operation_id="tell_health_health_get",
        summary="Tell Health",
        tags=["health"],
        response_model=HealthReport,
        responses={503: {"model": HealthReport}},
    )
    return [route for route in app.router.routes if isinstance(route, Route)]


class HealthReport(HttpModel):
    """Whether the broker is connected; how many replies are awaited, streams open and replies late; the text worker's status."""

    model_config = ConfigDict(extra="allow")

    status: str = Field(examples=["healthy"])
    broker: bool
    waiting: int
    streams: int
    late_replies: int


async def report_health(request: Request) -> JSONResponse:
    """The gateway's state, and that of the text worker (`loading` until its model is loaded). 503 without the broker."""
    services = services_of(request)
    requests, connected = services.commands.requests, services.publisher.connected
    snapshot = await services.text_status.latest() if connected else TextStatusSnapshot()
    status = "unavailable" if not connected else "loading" if snapshot.loading else "healthy"
    counts = {"waiting": requests.pending_count, "streams": services.open_streams, "late_replies": requests.late_replies}
    report = {"status": status, "broker": connected} | counts | health_fields(snapshot, services.text_status.uptime)
    return JSONResponse(report, 200 if connected else 503)
