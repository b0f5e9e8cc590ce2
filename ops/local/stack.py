"""The parts that nobody gave us: RabbitMQ, PostgreSQL and the store, under one folder of the checkout."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from anyio import to_thread

from ops.local.install import find_rabbitmq
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.local.sharing import Shared, joined
from ops.local.writing_server import WritingServer
from ops.models import TRAINED, WRITER
from ops.settings import LocalSettings

log = structlog.get_logger()


@dataclass(frozen=True)
class Addresses:
    """Where the parts are."""

    amqp_url: str
    database_url: str
    store_url: str

    @property
    def environment(self) -> dict[str, str]:
        """As actors read it."""
        return {"AMQP_URL": self.amqp_url, "DATABASE_URL": self.database_url, "STORE_URL": self.store_url}


@asynccontextmanager
async def local_stack(settings: LocalSettings, *more: WritingServer) -> AsyncIterator[Addresses]:
    """Start what has no URL and `more`, all at once, and stop at the end what nobody else uses. Raises SetupError with the cure."""
    folder = settings.local_folder.resolve()
    shares = [Shared(server, server.folder) for server in more]
    amqp, database = settings.given_amqp_url, settings.given_database_url
    if not amqp:
        node = RabbitNode(folder / "rabbitmq", await to_thread.run_sync(find_rabbitmq, settings))
        shares.append(Shared(node, node.folder))
    if not database:
        server = EmbeddedPostgres(folder / "postgres")
        shares.append(Shared(server, server.folder))
    async with joined(*shares):
        addresses = Addresses(
            amqp_url=amqp or node.url,
            database_url=database or server.url,
            store_url=settings.given_store_url or store_in(settings),
        )
        log.info(
            "stack.ready", rabbitmq="given" if amqp else "private", postgres="given" if database else "embedded", store=addresses.store_url
        )
        yield addresses
    log.info("stack.left")


def writing_server(folder: Path) -> WritingServer:
    return WritingServer(folder / "writer", TRAINED / WRITER)


def store_in(settings: LocalSettings) -> str:
    folder = settings.local_folder.resolve() / "store"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()


def stop_leftovers(settings: LocalSettings) -> None:
    """Stop what still runs in the folder, or in one below it such as the demo's, whoever started it."""
    for place in settings.local_folder.resolve().rglob("identity.json"):
        folder = place.parent
        if folder.name == "rabbitmq":
            RabbitNode(folder, folder).stop()
        if folder.name == "postgres":
            EmbeddedPostgres(folder).stop()
        if folder.name == "writer":
            writing_server(folder.parent).stop()
