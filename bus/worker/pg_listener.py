"""A trigger reads a foreign database as an adapter reads a foreign queue: it is notified of what is due, and publishes commands for it.

Rule 1: a notification only says where to look; what is due is read anew, so that nothing is done for a state that has passed.
Rule 2: after each (re)connection, and now and then, everything is looked at, so that what happened while nobody listened is not missed.
Rule 3: a command's id follows from the state that it answers, so that seen twice it is done once.
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
from bus.amqp import messages
from bus.amqp.publisher import Publisher
from bus.errors import PermanentError
from bus.persistence.pool import set_json_codecs
from bus.settings import BusSettings

RECENT_COMMANDS_LIMIT = 10_000
"""Commands published lately, so that a sweep does not publish what still waits in its queue. The inbox knows the rest."""

log = structlog.get_logger()


@dataclass(frozen=True)
class PgListener:
    """`due`: a query of what is to be done; its one argument is a list of ids, or null for everything.

    `key`: the field of a notification's JSON that holds such an id. `translate` is pure: a row in, a command out.
    """

    name: str
    channel: str
    id_field: str
    due_query: str
    translate: Callable[[Mapping[str, Any]], TranslatedCommand]
    schema: str = ""
    sweep_seconds: float = 60.0
    reconnect_seconds: float = 5.0

    @property
    def step(self) -> str:
        return self.name


@dataclass
class ListenLoop:
    """One trigger at work."""

    listener: PgListener
    url: str
    publisher: Publisher
    notified_ids: set[str] = field(default_factory=set)
    notified: asyncio.Event = field(default_factory=asyncio.Event)
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    recently_published: "OrderedDict[str, None]" = field(default_factory=OrderedDict)

    async def run(self) -> None:
        """Listen, and again after the connection is lost."""
        while True:
            try:
                await self._listen()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("trigger.lost", trigger=self.listener.name, error=repr(error), again_in_seconds=self.listener.reconnect_seconds)
            self.listening.clear()
            await asyncio.sleep(self.listener.reconnect_seconds)

    async def _listen(self) -> None:
        """Until the connection is lost. Listening begins before the first look, so that nothing falls between the two."""
        connection = await asyncpg.connect(self.url, timeout=10, command_timeout=30)
        try:
            await set_json_codecs(connection)
            connection.add_termination_listener(lambda _: self.notified.set())
            await connection.add_listener(self.listener.channel, self._on_notification)
            log.info("trigger.listening", trigger=self.listener.name, channel=self.listener.channel)
            self.listening.set()
            await self._publish_due(connection, None)
            while not connection.is_closed():
                await self._publish_next(connection)
        finally:
            connection.terminate()

    async def _publish_next(self, connection: asyncpg.Connection) -> None:
        """Wait for a word, then look where it points; without a word in time, everywhere."""
        try:
            await asyncio.wait_for(self.notified.wait(), self.listener.sweep_seconds)
        except TimeoutError:
            await self._publish_due(connection, None)
            return
        self.notified.clear()
        named, self.notified_ids = self.notified_ids, set()
        if named and not connection.is_closed():
            await self._publish_due(connection, sorted(named))

    def _on_notification(self, connection: object, pid: int, channel: str, payload: object) -> None:
        """A notification that cannot be read is left to the next sweep."""
        with suppress(ValueError, KeyError, TypeError):
            self.notified_ids.add(str(json.loads(str(payload))[self.listener.id_field]))
            self.notified.set()

    async def _publish_due(self, connection: asyncpg.Connection, ids: list[str] | None) -> None:
        for row in await connection.fetch(self.listener.due_query, ids):
            order = self.listener.translate(dict(row))
            if order.message_id in self.recently_published:
                continue
            letter = messages.build_command(order.step, order.body, message_id=order.message_id, job_id=order.job_id, headers=order.headers)
            await self.publisher.publish_until_confirmed(letter)
            self.recently_published[order.message_id] = None
            while len(self.recently_published) > RECENT_COMMANDS_LIMIT:
                self.recently_published.popitem(last=False)
            log.info("trigger.fired", trigger=self.listener.name, step=order.step, job_id=order.job_id, message_id=order.message_id)


@asynccontextmanager
async def open_pg_listener(listener: PgListener, settings: BusSettings, publisher: Publisher) -> AsyncIterator[ListenLoop]:
    """Watch until closed. Raises PermanentError("database-missing")."""
    if settings.postgres_url is None:
        raise PermanentError("database-missing", f"{listener.name} listens to Postgres: set DATABASE_URL")
    watch = ListenLoop(listener, settings.postgres_url, publisher)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
