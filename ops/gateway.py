"""`atelier gateway`: the front door, in this process, until SIGTERM or Ctrl-C."""

import threading
from argparse import Namespace

from bus.logs import open_logs
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from gateway.keys import OpenDoor
from gateway.serve import serve
from gateway.settings import GatewaySettings
from gateway.vertex import VertexSettings, placed
from ops.cli import leave_when_let_go
from ops.errors import SetupError
from ops.settings import LocalSettings


def gateway(arguments: Namespace) -> int:
    """Returns 1 when it could not begin."""
    open_logs()
    if arguments.leash:
        threading.Thread(target=leave_when_let_go, daemon=True).start()
    given = {name: getattr(arguments, name) for name in ("host", "port") if getattr(arguments, name) is not None}
    store = StoreSettings() if LocalSettings().given_store_url else None
    try:
        settings = GatewaySettings.model_validate(placed(GatewaySettings(), VertexSettings()).model_dump() | given)
        return 0 if serve(BusSettings(), settings, store) else 1
    except (OpenDoor, ValueError, OSError) as error:
        raise SetupError(str(error)) from error
