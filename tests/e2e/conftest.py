"""The console as a person meets it: a browser, a house behind the gateway, and keys."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from gateway.settings import GatewaySettings
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from tests.e2e.chromium import open_browser
from tests.e2e.painting import SLOW_PAINTER
from tests.e2e.site import Site, open_site
from tests.e2e.visitor import KEY, Visitor


@pytest.fixture(scope="module")
def site(rabbitmq: RabbitNode, postgres: EmbeddedPostgres) -> Iterator[Site]:
    """Gone with its module: its actors would take the messages of other tests."""
    bus = BusSettings.model_validate({"amqp_url": rabbitmq.url, "database_url": postgres.url, "retry_delays_seconds": (0.1,)})
    settings = GatewaySettings.model_validate({"api_keys": f"kim:{KEY}", "keepalive_seconds": 2.0, "operators": ("kim",)})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="atelier-site-")))
        yield stack.enter_context(open_site(bus, StoreSettings(store_url=folder.as_uri()), settings, SLOW_PAINTER))


@pytest.fixture
def visitor(site: Site) -> Iterator[Visitor]:
    """Logged in. At the end, the browser had nothing to complain of."""
    with open_browser() as browser:
        visitor = Visitor(browser, site)
        visitor.log_in()
        yield visitor
        assert visitor.said_wrong() == []


@pytest.fixture
def stranger(site: Site) -> Callable[..., AbstractContextManager[Visitor]]:
    """`with stranger(width=390) as visitor:` is somebody who has not logged in yet."""

    @contextmanager
    def opened(**how: object) -> Iterator[Visitor]:
        with open_browser(**how) as browser:  # type: ignore[arg-type]
            yield Visitor(browser, site)

    return opened
