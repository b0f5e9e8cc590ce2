"""Listens to a foreign database: on a NOTIFY it reads the rows that are due, and publishes a command for each.

Rule 1: a notification only names rows; their state is read again, so that no command is published for an outdated state.
Rule 2: after each (re)connection, and at intervals, all due rows are read, so that missed notifications do no harm.
Rule 3: the id of a command is derived from the state that caused it, so that the inbox recognises a duplicate.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import structlog

from bus.actor import TranslatedCommand
from bus.amqp.messages import build_command
from bus.amqp.publisher import Publisher
from bus.errors import PermanentError
from bus.persistence.pool import set_json_codecs
from bus.persistence.session_locks import connect_session
from bus.settings import BusSettings

QUERY_TIMEOUT_SECONDS = 30.0
RECENT_COMMANDS_LIMIT = 10_000
"""Ids of the latest commands, so that a sweep does not publish those that still wait in their queue. The inbox knows the others."""

log = structlog.get_logger()


@dataclass(frozen=True)
class PgListener:
    """`due_query` selects the rows that are due; its one argument is a list of ids, or null for all.

    `id_field`: the field of a notification's JSON that holds such an id. `translate` is pure: a row in, a command out.
    """

    name: str
    channel: str
    id_field: str
    due_query: str
    translate: Callable[[Mapping[str, Any]], TranslatedCommand]
    schema: str = ""
    sweep_seconds: float = 60.0
    reconnect_seconds: float = 5.0


@dataclass
class ListenLoop:
    """The running loop of one listener. `listening` is set while it is connected."""

    listener: PgListener
    url: str
    publisher: Publisher
    notified_ids: set[str] = field(default_factory=set)
    notified: asyncio.Event = field(default_factory=asyncio.Event)
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    recently_published: "OrderedDict[str, None]" = field(default_factory=OrderedDict)

    async def run(self) -> None:
        """Listen, and reconnect when the connection is lost. Never returns."""
        while True:
            try:
                await self._listen()
            except Exception as error:
                seconds = self.listener.reconnect_seconds
                log.warning("pg_listener.disconnected", listener=self.listener.name, error=repr(error), reconnect_seconds=seconds)
            self.listening.clear()
            await asyncio.sleep(self.listener.reconnect_seconds)

    async def _listen(self) -> None:
        """Until the connection is lost. LISTEN comes before the first query, so that no notification falls between them."""
        connection = await connect_session(self.url, QUERY_TIMEOUT_SECONDS)
        try:
            await set_json_codecs(connection)
            connection.add_termination_listener(lambda _: self.notified.set())
            await connection.add_listener(self.listener.channel, self._on_notification)
            log.info("pg_listener.listening", listener=self.listener.name, channel=self.listener.channel)
            self.listening.set()
            await self._publish_due(connection, None)
            while not connection.is_closed():
                await self._publish_next(connection)
        finally:
            connection.terminate()

    async def _publish_next(self, connection: asyncpg.Connection) -> None:
        """Wait for a notification, then publish for the rows it names; after `sweep_seconds` without one, for all due rows."""
        try:
            await asyncio.wait_for(self.notified.wait(), self.listener.sweep_seconds)
        except TimeoutError:
            await self._publish_due(connection, None)
            return
        self.notified.clear()
        ids, self.notified_ids = self.notified_ids, set()
        if ids and not connection.is_closed():
            await self._publish_due(connection, sorted(ids))

    def _on_notification(self, connection: object, pid: int, channel: str, payload: object) -> None:
        """Note the id of a notification; an invalid one is left to the next sweep."""
        with suppress(ValueError, KeyError, TypeError):
            self.notified_ids.add(str(json.loads(str(payload))[self.listener.id_field]))
            self.notified.set()

    async def _publish_due(self, connection: asyncpg.Connection, ids: list[str] | None) -> None:
        """A row whose command cannot be built or published is logged, and tried again by the next sweep; the others go on."""
        for row in await connection.fetch(self.listener.due_query, ids):
            try:
                command = self.listener.translate(dict(row))
                if command.message_id not in self.recently_published:
                    await self._publish(command)
            except Exception as error:
                log.error("pg_listener.row_failed", listener=self.listener.name, error=repr(error)[:500])

    async def _publish(self, command: TranslatedCommand) -> None:
        ids = {"message_id": command.message_id, "job_id": command.job_id}
        await self.publisher.publish_until_confirmed(build_command(command.step, command.body, **ids, headers=command.headers))
        self.recently_published[command.message_id] = None
        while len(self.recently_published) > RECENT_COMMANDS_LIMIT:
            self.recently_published.popitem(last=False)
        log.info("pg_listener.command_published", listener=self.listener.name, step=command.step, **ids)


@asynccontextmanager
async def open_pg_listener(listener: PgListener, settings: BusSettings, publisher: Publisher) -> AsyncIterator[ListenLoop]:
    """Listen inside the block. Raises PermanentError("database-missing") without DATABASE_URL."""
    if settings.postgres_url is None:
        raise PermanentError("database-missing", f"{listener.name} listens to Postgres: set DATABASE_URL")
    loop = ListenLoop(listener, settings.direct_postgres_url or settings.postgres_url, publisher)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
