"""The parts that nobody gave us: RabbitMQ, PostgreSQL and the store, under one folder of the checkout."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from anyio import to_thread

from ops.local.llm_server import LlmServer
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.local.shared_server import SharedServer, shared_servers
from ops.local.tiny_models import CHECKPOINTS, TINY_LLM
from ops.settings import LocalSettings

log = structlog.get_logger()


@dataclass(frozen=True)
class ServiceUrls:
    """Where the parts are."""

    amqp_url: str
    database_url: str
    store_url: str

    @property
    def environment(self) -> dict[str, str]:
        """As actors read it."""
        return {"AMQP_URL": self.amqp_url, "DATABASE_URL": self.database_url, "STORE_URL": self.store_url}


@asynccontextmanager
async def local_stack(settings: LocalSettings, *extra_servers: LlmServer) -> AsyncIterator[ServiceUrls]:
    """Start what has no URL and `more`, all at once, and stop at the end what nobody else uses. Raises SetupError with the cure."""
    folder = settings.local_folder.resolve()
    shares = [SharedServer(server, server.folder) for server in extra_servers]
    amqp, database = settings.given_amqp_url, settings.given_database_url
    if not amqp:
        node = RabbitNode(folder / "rabbitmq", await to_thread.run_sync(find_or_install_rabbitmq, settings))
        shares.append(SharedServer(node, node.folder))
    if not database:
        server = EmbeddedPostgres(folder / "postgres")
        shares.append(SharedServer(server, server.folder))
    async with shared_servers(*shares):
        addresses = ServiceUrls(
            amqp_url=amqp or node.url,
            database_url=database or server.url,
            store_url=settings.given_store_url or local_store_url(settings),
        )
        log.info(
            "stack.ready", rabbitmq="given" if amqp else "private", postgres="given" if database else "embedded", store=addresses.store_url
        )
        yield addresses
    log.info("stack.left")


def llm_server(folder: Path) -> LlmServer:
    return LlmServer(folder / "writer", CHECKPOINTS / TINY_LLM)


def local_store_url(settings: LocalSettings) -> str:
    folder = settings.local_folder.resolve() / "store"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()


def stop_orphans(settings: LocalSettings) -> None:
    """Stop what still runs in the folder, or in one below it such as the demo's, whoever started it."""
    for place in settings.local_folder.resolve().rglob("identity.json"):
        folder = place.parent
        if folder.name == "rabbitmq":
            RabbitNode(folder, folder).stop()
        if folder.name == "postgres":
            EmbeddedPostgres(folder).stop()
        if folder.name == "writer":
            llm_server(folder.parent).stop()
