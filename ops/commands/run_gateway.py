"""`atelier gateway`: the HTTP gateway in this process, until SIGTERM or Ctrl-C."""

import threading
from argparse import Namespace

from bus import empty_modules
from ops.errors import SetupError, describe_settings_error
from ops.settings import LocalSettings
from ops.supervisor import exit_with_parent

with empty_modules("http.server", "urllib.request", "wsgiref.simple_server"):  # for its own servers and pushes: 1 MB
    import prometheus_client  # noqa: F401
with empty_modules("asyncpg"):  # a gateway opens no database, but the bus names errors of one: 3 MB
    from bus.observability.logs import configure_logging
    from bus.settings import BusSettings
    from bus.storage.settings import StoreSettings
    from gateway.compat.vertex import VertexSettings, apply_vertex_settings
    from gateway.middleware.api_keys import InsecureBindError
    from gateway.serve import serve
    from gateway.settings import GatewaySettings


def run_gateway(arguments: Namespace) -> int:
    """Returns 1 when the gateway could not start. Raises SetupError for invalid settings."""
    configure_logging()
    if arguments.exit_with_parent:
        threading.Thread(target=exit_with_parent, daemon=True).start()
    overrides = {name: getattr(arguments, name) for name in ("host", "port") if getattr(arguments, name) is not None}
    store = StoreSettings() if LocalSettings().given_store_url else None
    try:
        vertex = VertexSettings()
        configured = apply_vertex_settings(GatewaySettings(), vertex)
        settings = GatewaySettings.model_validate(configured.model_dump() | overrides)
        return 0 if serve(BusSettings(), settings, store, vertex) else 1
    except (InsecureBindError, ValueError, OSError) as error:
        described = describe_settings_error(error) if isinstance(error, ValueError) else None
        raise SetupError(described or str(error)) from error
