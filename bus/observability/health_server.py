"""The HTTP server of a worker for /health/live, /health/ready, /health/startup and /metrics. It requires no key.

live: the event loop runs. startup: the worker has started. ready: every check passes; else 503 with the reasons.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog

from bus.observability import metrics
from bus.observability.health import Health

log = structlog.get_logger()

Response = tuple[int, str, bytes]
AsgiSend = Callable[[dict[str, Any]], Awaitable[None]]


class HealthApp:
    """An ASGI application with four paths."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self._routes = {"/health/live": self.live, "/health/ready": self.ready, "/health/startup": self.startup, "/metrics": self.metrics}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: AsgiSend) -> None:
        endpoint = self._routes.get(scope["path"].rstrip("/"), self.not_found)
        status, media_type, body = await (endpoint() if scope["method"] in ("GET", "HEAD") else self.method_not_allowed())
        headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def live(self) -> Response:
        return json_response(200, {"live": True})

    async def startup(self) -> Response:
        return json_response(200 if self.health.started else 503, {"started": self.health.started})

    async def ready(self) -> Response:
        results = await self.health.check_all()
        reasons = [f"{name}: {reason}" for name, reason in results.items() if reason]
        if not self.health.started:
            reasons.insert(0, "starting: not everything is open yet")
        payload = {"ready": not reasons, "reasons": reasons, "parts": {name: reason or "ok" for name, reason in results.items()}}
        return json_response(503 if reasons else 200, payload)

    async def metrics(self) -> Response:
        await self.health.check_all()
        return 200, metrics.CONTENT_TYPE, metrics.render()

    async def not_found(self) -> Response:
        return json_response(404, {"paths": list(self._routes)})

    async def method_not_allowed(self) -> Response:
        return json_response(405, {"methods": ["GET", "HEAD"]})


def json_response(status: int, payload: dict[str, Any]) -> Response:
    return status, "application/json", json.dumps(payload, ensure_ascii=False).encode()


@asynccontextmanager
async def serve_health(health: Health) -> AsyncIterator[str | None]:
    """Serve inside the block and yield the URL; None without HEALTH_PORT. Raises OSError when the port is in use."""
    if health.settings.port is None:
        yield None
        return
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # `bus.worker.worker.serve` handles signals

    listener = bind_socket(health.settings.host, health.settings.port)
    server = Server(uvicorn.Config(HealthApp(health), log_config=None, access_log=False, lifespan="off", server_header=False))
    task = asyncio.create_task(server.serve([listener]))
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    log.info("health.ready", url=url)
    try:
        yield url
    finally:
        server.should_exit = server.force_exit = True
        await task
        listener.close()


def bind_socket(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(error.errno, f"HEALTH_PORT={port} on {host} cannot be bound: {error.strerror}. Each process needs a port.") from error
