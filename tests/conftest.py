"""Real services for the tests: one private RabbitMQ node and one PostgreSQL server for the whole run, each in a temporary folder; a worker
in this process on them, and a client of the broker.

AMQP_URL and DATABASE_URL are ignored: a test may kill the services.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aio_pika
import certifi
import pytest
from aio_pika.abc import AbstractIncomingMessage
from hypothesis import HealthCheck, settings

from bus import ids
from bus.actor import Actor
from bus.amqp import signing
from bus.masking import forget_secrets
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.settings import LocalSettings
from tests.support.broker_client import BrokerClient, StartWorker, purge_queues
from tests.support.dead_letter_fixtures import pool, repository, start_worker_with_ingest
from tests.support.gpu import missing_gpu

__all__ = ["pool", "repository", "start_worker_with_ingest"]
"""Fixtures that stand elsewhere."""

CERTIFICATE_END = "-----END CERTIFICATE-----\n"

settings.register_profile("busy-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy-machine")
"""How long an example takes is no property of the code: tests of durations measure them by themselves."""

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is loaded here or by a process that a test starts. Each core has a test process: with more threads than cores, those of
OpenMP wait for each other in loops, and tests of the image engine took three times the processor time.
"""

AUTHORITY = TemporaryDirectory(prefix="atelier-authority-")
os.environ["SSL_CERT_FILE"] = str(Path(AUTHORITY.name) / "one.pem")
Path(os.environ["SSL_CERT_FILE"]).write_text("".join(certifi.contents().partition(CERTIFICATE_END)[:2]))
"""The public authority that HTTP clients trust, here and in processes that a test starts. No test calls a public server, and reading all
authorities takes 30 ms of processor time for each client. The folder is removed at the end of the process.
"""


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


@pytest.fixture(scope="session")
def ceph_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a private Ceph's S3 gateway. `store_settings` empties it for a test."""
    from tests.support.ceph_store import open_ceph  # imports boto3

    with open_ceph(tmp_path_factory.mktemp("ceph")) as url:
        yield url


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all tiny checkpoints, which tests only read. Made in this process: another would import torch for it, for seconds."""
    from ops.local.tiny_models import make_tiny_families, make_tiny_models

    folder = tmp_path_factory.mktemp("checkpoints")
    make_tiny_models(folder)
    make_tiny_families(folder)
    return folder


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    """An empty folder for a claim store; its URL is `store_folder.as_uri()`."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def bus_settings(amqp_url: str, database_url: str) -> BusSettings:
    return BusSettings.model_validate(
        {
            "amqp_url": amqp_url,
            "database_url": database_url,
            "retry_delays_seconds": (0.1, 0.2),
            "long_delays_seconds": (0.5,),
            "publish_timeout_seconds": 5.0,
            "grace_seconds": 5.0,
        }
    )


@pytest.fixture
def start_worker(bus_settings: BusSettings, store_folder: Path) -> StartWorker:
    """`async with start_worker(actor, …):` serves the actors."""

    def start(*actors: Actor, settings: BusSettings = bus_settings, adapters: Any = ()) -> AbstractAsyncContextManager[str | None]:
        return Worker(actors, adapters, settings, StoreSettings(store_url=store_folder.as_uri())).run()

    return start


@pytest.fixture
async def purged_queues(amqp_url: str) -> None:
    """The queues that all tests share are empty."""
    async with await aio_pika.connect(amqp_url) as connection:
        await purge_queues(connection)


@pytest.fixture
async def broker_client(amqp_url: str, purged_queues: None) -> AsyncIterator[BrokerClient]:
    async with await aio_pika.connect(amqp_url) as connection:
        client = BrokerClient(await connection.channel())
        queue = await client.channel.declare_queue(exclusive=True)
        client.reply_queue = queue.name

        async def on_reply(message: AbstractIncomingMessage) -> None:
            client.replies.put_nowait(message)

        await queue.consume(on_reply, no_ack=True)
        yield client


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
    """A test sees the defaults and what it sets itself, not what the developer's shell exports; how many rows share a step does not
    depend on how busy the machine is.
    """
    for name in [name for name in os.environ if name.startswith(SETTING_PREFIXES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("IMAGE_MEASURE_SECONDS", "0")


@pytest.fixture(autouse=True)
def _no_process_secret() -> None:
    """A worker in this process keys the ids of the whole process, by the secret of its settings or of its database."""
    ids.use_secret(None)
    signing.sign_with(None)
    forget_secrets()
