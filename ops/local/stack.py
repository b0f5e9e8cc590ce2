"""The local services that no setting provides: RabbitMQ, PostgreSQL and the store, under one folder."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from anyio import to_thread

from bus.persistence.database_url import check_database_url
from ops.errors import SetupError
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.local.rabbitmq_users import RoleNode
from ops.local.secret_file import secret_fields
from ops.local.shared_server import SharedServer, shared_servers
from ops.settings import BrokerUserSettings, LocalSettings

log = structlog.get_logger()


@dataclass(frozen=True)
class ServiceUrls:
    """The URLs of the services. `amqp_urls`: those of the broker's users by role; empty for a broker that is given, with one user for all.

    `amqp_url`: the administrator's on the private node. `direct_database_url`: empty unless it is given together with `database_url`.
    `secrets`: fields of `BusSettings`.
    """

    amqp_url: str
    database_url: str
    store_url: str
    amqp_urls: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Any] = field(default_factory=dict, repr=False)
    direct_database_url: str = ""

    def amqp_url_of(self, role: str) -> str:
        return self.amqp_urls.get(role, self.amqp_url)

    @property
    def environment(self) -> dict[str, str]:
        """The settings of the actors. The direct URL stands there also when it is empty: an inherited one leads to another database."""
        databases = {"DATABASE_URL": self.database_url, "DATABASE_DIRECT_URL": self.direct_database_url}
        urls = {"AMQP_URL": self.amqp_url_of("actor"), **databases, "STORE_URL": self.store_url}
        return urls | ({"ATELIER_SECRET": secret} if (secret := self.secrets.get("secret")) else {})


@asynccontextmanager
async def local_stack(settings: LocalSettings) -> AsyncIterator[ServiceUrls]:
    """Start the services without a URL at the same time; on exit stop those that no other process uses.

    Raises SetupError with the remedy.
    """
    folder = settings.local_folder.resolve()
    shared: list[SharedServer] = []
    amqp, database = settings.given_amqp_url, settings.given_database_url
    direct = (settings.given_direct_database_url or "") if database else ""
    for name, url in (("DATABASE_URL", database), ("DATABASE_DIRECT_URL", direct)):
        try:
            if url:
                check_database_url(url)
        except ValueError as error:
            raise SetupError(f"{name}: {error}") from None
    if not amqp:
        node = RabbitNode(folder / "rabbitmq", await to_thread.run_sync(find_or_install_rabbitmq, settings))
        role_node = RoleNode(node, BrokerUserSettings())
        shared.append(SharedServer(role_node, node.folder))
    if not database:
        server = EmbeddedPostgres(folder / "postgres")
        shared.append(SharedServer(server, server.folder))
    async with shared_servers(*shared):
        urls = ServiceUrls(
            amqp_urls={} if amqp else role_node.urls,
            amqp_url=amqp or node.url,
            database_url=database or server.url,
            direct_database_url=direct,
            store_url=settings.given_store_url or local_store_url(settings),
            secrets=await to_thread.run_sync(secret_fields, settings),
        )
        log.info("stack.ready", rabbitmq="given" if amqp else "private", postgres="given" if database else "embedded", store=urls.store_url)
        yield urls
    log.info("stack.stopped")


def local_store_url(settings: LocalSettings) -> str:
    folder = settings.local_folder.resolve() / "store"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()


def stop_orphans(settings: LocalSettings) -> None:
    """Stop every server whose files are in the folder or below it, such as the demo's, whichever process started it."""
    for identity in settings.local_folder.resolve().rglob("identity.json"):
        folder = identity.parent
        if folder.name == "rabbitmq":
            RabbitNode(folder, folder).stop()
        if folder.name == "postgres":
            EmbeddedPostgres(folder).stop()
