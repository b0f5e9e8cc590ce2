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

from bus import letters
from bus.adapter import Translated
from bus.database import speak_json
from bus.errors import PermanentError
from bus.outbox import Outbox
from bus.settings import BusSettings

REMEMBERED = 10_000
"""Commands published lately, so that a sweep does not publish what still waits in its queue. The inbox knows the rest."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Trigger:
    """`due`: a query of what is to be done; its one argument is a list of ids, or null for everything.

    `key`: the field of a notification's JSON that holds such an id. `translate` is pure: a row in, a command out.
    """

    name: str
    channel: str
    key: str
    due: str
    translate: Callable[[Mapping[str, Any]], Translated]
    schema: str = ""
    sweep_seconds: float = 60.0
    reconnect_seconds: float = 5.0

    @property
    def step(self) -> str:
        return self.name


@dataclass
class Watch:
    """One trigger at work."""

    trigger: Trigger
    url: str
    outbox: Outbox
    named: set[str] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    published: "OrderedDict[str, None]" = field(default_factory=OrderedDict)

    async def for_ever(self) -> None:
        """Listen, and again after the connection is lost."""
        while True:
            try:
                await self._listen()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("trigger.lost", trigger=self.trigger.name, error=repr(error), again_in_seconds=self.trigger.reconnect_seconds)
            self.listening.clear()
            await asyncio.sleep(self.trigger.reconnect_seconds)

    async def _listen(self) -> None:
        """Until the connection is lost. Listening begins before the first look, so that nothing falls between the two."""
        connection = await asyncpg.connect(self.url, timeout=10, command_timeout=30)
        try:
            await speak_json(connection)
            connection.add_termination_listener(lambda _: self.wake.set())
            await connection.add_listener(self.trigger.channel, self._hear)
            log.info("trigger.listening", trigger=self.trigger.name, channel=self.trigger.channel)
            self.listening.set()
            await self._publish(connection, None)
            while not connection.is_closed():
                await self._look(connection)
        finally:
            connection.terminate()

    async def _look(self, connection: asyncpg.Connection) -> None:
        """Wait for a word, then look where it points; without a word in time, everywhere."""
        try:
            await asyncio.wait_for(self.wake.wait(), self.trigger.sweep_seconds)
        except TimeoutError:
            await self._publish(connection, None)
            return
        self.wake.clear()
        named, self.named = self.named, set()
        if named and not connection.is_closed():
            await self._publish(connection, sorted(named))

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        """A notification that cannot be read is left to the next sweep."""
        with suppress(ValueError, KeyError, TypeError):
            self.named.add(str(json.loads(str(payload))[self.trigger.key]))
            self.wake.set()

    async def _publish(self, connection: asyncpg.Connection, named: list[str] | None) -> None:
        for row in await connection.fetch(self.trigger.due, named):
            order = self.trigger.translate(dict(row))
            if order.message_id in self.published:
                continue
            letter = letters.command_letter(order.step, order.body, message_id=order.message_id, job_id=order.job_id, headers=order.headers)
            await self.outbox.post_until_confirmed(letter)
            self.published[order.message_id] = None
            while len(self.published) > REMEMBERED:
                self.published.popitem(last=False)
            log.info("trigger.fired", trigger=self.trigger.name, step=order.step, job_id=order.job_id, message_id=order.message_id)


@asynccontextmanager
async def open_trigger(trigger: Trigger, settings: BusSettings, outbox: Outbox) -> AsyncIterator[Watch]:
    """Watch until closed. Raises PermanentError("database-missing")."""
    if settings.postgres_url is None:
        raise PermanentError("database-missing", f"{trigger.name} listens to Postgres: set DATABASE_URL")
    watch = Watch(trigger, settings.postgres_url, outbox)
    task = asyncio.create_task(watch.for_ever())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
