"""Group commit: what waits for the database at the same time goes as one statement. Nothing waits for a timer.

The first item goes at once; what arrives while its statement is under way goes with the next. The more load, the larger the groups.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from bus.masking import mask_error
from bus.retry import retry_while_unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MAX_ITEMS = 500
MAX_SIZE = 4_000_000
"""Limits of a group; the size in characters. With it the statement ends within its time limit. A larger item goes alone."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Waiter(Generic[Item, Answer]):
    """A caller, and the statement that its item is part of, once it is under way."""

    item: Item
    size: int
    answer: asyncio.Future[Answer]
    statement: asyncio.Task[None] | None = None

    async def wait(self) -> Answer:
        """The answer, or the error of the statement. A caller that is cancelled meanwhile waits for its end: it may still take effect."""
        try:
            return await self.answer
        except asyncio.CancelledError:
            if self.statement:
                await asyncio.wait({self.statement})
            raise


class GroupCommit(Generic[Item, Answer]):
    """One group at a time. `run` sends its items in one transaction, all or nothing, and returns an answer for each, in their order.

    When a group fails, each of its callers repeats its own item alone. So an item that the database refuses fails no other, and one
    that cannot be written in time delays no other twice. `run` may get an item again whose first response was lost.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> None:
        self._run = run
        self._waiting: deque[Waiter[Item, Answer]] = deque()
        self._under_way: asyncio.Task[None] | None = None

    async def submit(self, item: Item, size: int = 0) -> Answer:
        """The answer for the item, once it is committed; waits while the database is unavailable. `size`: of the item, in characters.

        A caller that is cancelled changes nothing for its group. Its own item is left out unless it is under way already.
        """
        waiter: Waiter[Item, Answer] = Waiter(item, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._start()
        with suppress(Exception):  # another item may be at fault
            return await waiter.wait()
        return await retry_while_unavailable(lambda: self.send_alone(item), "database")

    async def send_alone(self, item: Item) -> Answer:
        """The answer for the item from a statement of its own, at once, whatever else is under way. Raises the error of the statement."""
        waiter: Waiter[Item, Answer] = Waiter(item, 0, asyncio.get_running_loop().create_future())
        waiter.statement = asyncio.create_task(self._send([waiter]))
        return await waiter.wait()

    def _start(self) -> None:
        if self._waiting and self._under_way is None:
            self._under_way = asyncio.create_task(self._send_group())
            self._under_way.add_done_callback(self._on_end)

    def _on_end(self, _: asyncio.Task[None]) -> None:
        self._under_way = None
        self._start()

    async def _send_group(self) -> None:
        """In a task of its own: when it begins, all that was submitted in the same turn of the event loop is waiting."""
        if group := self._take_group():
            await self._send(group)

    def _take_group(self) -> list[Waiter[Item, Answer]]:
        group: list[Waiter[Item, Answer]] = []
        room = MAX_SIZE
        while self._waiting and len(group) < MAX_ITEMS and (not group or self._waiting[0].size <= room):
            waiter = self._waiting.popleft()
            if not waiter.answer.cancelled():
                waiter.statement = self._under_way
                group.append(waiter)
                room -= waiter.size
        return group

    async def _send(self, group: Sequence[Waiter[Item, Answer]]) -> None:
        try:
            answers = await self._run([waiter.item for waiter in group])
            answered = list(zip(group, answers, strict=True))
        except Exception as error:
            if len(group) > 1:
                log.warning("database.group_failed", items=len(group), error=mask_error(error))
            for waiter in group:
                if not waiter.answer.done():
                    waiter.answer.set_exception(error)
            return
        for waiter, answer in answered:
            if not waiter.answer.done():
                waiter.answer.set_result(answer)
