"""The gateway's HTTP server, which runs until SIGTERM or SIGINT."""

import asyncio
import gc
import math
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn

from bus.observability.settings import HealthSettings, TracingSettings
from bus.observability.tracing import open_tracing
from bus.persistence.installation_secret import warn_without_secret
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.app import create_app
from gateway.compat.vertex import VertexSettings
from gateway.connections import ConnectionLimits, allow_file_descriptors
from gateway.http_protocol import bounded_protocol
from gateway.settings import GatewaySettings

log = structlog.get_logger()


class GatewayServer(uvicorn.Server):
    """Logs its address when it accepts requests. After a signal it shuts down gracefully, and `run` returns instead of raising it again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.collect()
            gc.freeze()  # Objects that live as long as the process are not scanned again.
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            log.info("gateway.ready", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")


def serve(bus: BusSettings, settings: GatewaySettings, store: StoreSettings | None, vertex: VertexSettings) -> bool:
    """Returns False when it could not start: the broker is unavailable, or the port is in use."""
    limits = ConnectionLimits.from_settings(settings, allow_file_descriptors(settings.max_connections))
    config = uvicorn.Config(
        create_app(bus, settings, store, HealthSettings(), vertex),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        http=bounded_protocol(limits),
        ws="none",
        timeout_keep_alive=math.ceil(settings.idle_seconds),
        timeout_graceful_shutdown=round(settings.grace_seconds),
    )
    server = GatewayServer(config)
    if bus.secret is None:
        warn_without_secret()
    with open_tracing("gateway", TracingSettings()):
        server.run()
    return server.started
