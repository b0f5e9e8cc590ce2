"""A running console with its workers, and browsers that are logged in or not."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.settings import GatewaySettings
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from tests.e2e.chromium import open_browser
from tests.e2e.console_server import ConsoleServer, open_console_server
from tests.e2e.console_user import KEY, ConsoleUser
from tests.e2e.slow_image_actor import SLOW_IMAGE_ACTOR
from tests.support.own_database import own_database

LORA_ADDRESS = "s3://styles/private.safetensors"


@pytest.fixture(scope="module")
def console_server(rabbitmq: RabbitNode, postgres: EmbeddedPostgres) -> Iterator[ConsoleServer]:
    """Stopped at the end of the module: its actors would consume the messages of other tests.

    Its database is its own: the pages would show pictures of other tests, whose stores are gone.
    """
    names = {"image_loras": {"ink": LORA_ADDRESS, "gouache": LORA_ADDRESS}, "image_controlnets": {"canny": "/nets/canny"}}
    fields = {"api_keys": f"kim:{KEY}", "keepalive_seconds": 2.0, "operators": ("kim",)} | names
    settings = GatewaySettings.model_validate(fields)
    with asyncio.Runner() as runner, ExitStack() as stack:
        database = own_database(postgres.url)
        database_url, *_ = runner.run(database.__aenter__())
        stack.callback(lambda: runner.run(database.__aexit__(None, None, None)))
        bus = BusSettings.model_validate({"amqp_url": rabbitmq.url, "database_url": database_url, "retry_delays_seconds": (0.1,)})
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="atelier-site-")))
        yield stack.enter_context(open_console_server(bus, StoreSettings(store_url=folder.as_uri()), settings, SLOW_IMAGE_ACTOR))


@pytest.fixture
def console_user(console_server: ConsoleServer) -> Iterator[ConsoleUser]:
    """Logged in. The test fails when the browser has logged an error at its end."""
    with open_browser() as browser:
        user = ConsoleUser(browser, console_server)
        user.log_in()
        yield user
        assert user.browser_errors() == []


@pytest.fixture
def open_console_user(console_server: ConsoleServer) -> Callable[..., AbstractContextManager[ConsoleUser]]:
    """`with open_console_user(width=390) as user:` is a user who has not logged in; the arguments are those of `open_browser`."""

    @contextmanager
    def open_user(**arguments: object) -> Iterator[ConsoleUser]:
        with open_browser(**arguments) as browser:  # type: ignore[arg-type]
            yield ConsoleUser(browser, console_server)

    return open_user
