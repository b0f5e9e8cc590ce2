"""Where the RabbitMQ server is on this machine, and how it gets there when it is not."""

import shutil
from pathlib import Path

from ops.errors import SetupError
from ops.settings import LocalSettings

WAYS_OUT = """\
There is no RabbitMQ server on this machine. Three ways out:
  1. install it:       apt-get install rabbitmq-server   (or: dnf install rabbitmq-server · brew install rabbitmq)
  2. use another one:  AMQP_URL=amqp://user:password@host:5672/
  3. use a container:  docker compose up"""


def find_rabbitmq(settings: LocalSettings) -> Path:
    """The `rabbitmq-server` script. Raises SetupError with the ways out when there is none and none may be installed."""
    found = search(settings.server_path)
    if not found:
        raise SetupError(WAYS_OUT)
    return found


def search(folders: str) -> Path | None:
    script = shutil.which("rabbitmq-server", path=folders) or shutil.which("rabbitmq-server")
    return Path(script) if script else None
