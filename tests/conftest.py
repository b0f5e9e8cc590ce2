"""Real services for the tests: one private RabbitMQ node and one PostgreSQL server for the whole run, each in a temporary folder.

AMQP_URL and DATABASE_URL are ignored: a test may kill the services.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings

from bus import ids
from bus.amqp import signing
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.settings import LocalSettings
from tests.support.gpu import missing_gpu

settings.register_profile("busy-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy-machine")
"""How long an example takes is no property of the code: tests of durations measure them by themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none, with the reason."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and (reason := missing_gpu()):
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A private node. A test that kills it starts it again."""
    node = RabbitNode(tmp_path_factory.mktemp("rabbitmq"), find_or_install_rabbitmq(LocalSettings()))
    try:
        node.start()
        yield node
    finally:
        node.stop()


@pytest.fixture
def amqp_url(rabbitmq: RabbitNode) -> str:
    return rabbitmq.url


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """Not in pytest's temporary folder, which other users cannot enter: the server may run as another user."""
    with TemporaryDirectory(prefix="atelier-postgres-") as folder:
        server = EmbeddedPostgres(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> str:
    return postgres.url


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    """An empty folder for a claim store; its URL is `store_folder.as_uri()`."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


SETTING_PREFIXES = (
    *(
        "AIP_",
        "ALLOW",
        "ASSET_",
        "ATELIER_SECRET",
        "ATELIER_SIGN_MESSAGES",
        "AWS_",
        "BACKEND_",
        "CREDENTIALS_",
        "ENGINE_",
        "GATEWAY_",
        "HEALTH_",
        "IMAGE_",
        "INTERNAL_API_TOKEN",
        "LEDGER_",
        "MAX_CONCURRENT",
    ),
    *("ORDER_", "OTEL_", "S3_", "STORE_", "TLS_", "UPLOAD_", "WATERMARK_", "WEBHOOK_"),
)


@pytest.fixture(autouse=True)
def _clear_settings_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees the defaults and what it sets itself, not what the developer's shell exports."""
    for name in [name for name in os.environ if name.startswith(SETTING_PREFIXES)]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_process_secret() -> None:
    """A worker in this process keys the ids of the whole process, by the secret of its settings or of its database."""
    ids.use_secret(None)
    signing.sign_with(None)
