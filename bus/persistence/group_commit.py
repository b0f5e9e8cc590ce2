"""Group commit: what waits for the database at the same time goes as one statement. Nothing waits for a timer.

The first item goes at once; what arrives while its statement is under way goes with the next. The more load, the larger the groups.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import asyncpg
import structlog

from bus import retry
from bus.masking import mask_error
from bus.retry import UNAVAILABLE, retry_while_unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MAX_ITEMS = 500
MAX_SIZE = 4_000_000
"""Limits of a group; the size in characters. With it the statement ends within its time limit. A larger item goes alone."""
MAYBE_OF_ONE_ITEM = (TimeoutError, asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, asyncpg.InternalClientError)
"""Errors of UNAVAILABLE that one item may cause for its group. Any other means that the database is away."""

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
            while self.statement and not self.statement.done():
                with suppress(asyncio.CancelledError):  # cancelled again
                    await asyncio.wait({self.statement})
            raise


class GroupCommit(Generic[Item, Answer]):
    """One group at a time. `run` sends its items in one transaction, all or nothing, and returns an answer for each, in their order.

    When a group is refused or takes too long, each of its callers repeats its own item alone. So an item that the database refuses fails
    no other, and one that cannot be written in time delays no other twice. While the database is away the items wait for the next group,
    which is half as large after each loss: an item whose statement always loses its connection holds up no other for long.
    `run` may get an item again whose first response was lost.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> None:
        self._run = run
        self._waiting: deque[Waiter[Item, Answer]] = deque()
        self._under_way: asyncio.Task[None] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._max_items, self._wait = MAX_ITEMS, 0.0

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
        waiter.statement = asyncio.create_task(self._send(waiter))
        return await waiter.wait()

    def _start(self) -> None:
        if self._waiting and self._under_way is None and self._pause is None:
            self._under_way = asyncio.create_task(self._send_group())
            self._under_way.add_done_callback(self._on_end)

    def _on_end(self, _: asyncio.Task[None]) -> None:
        self._under_way = None
        if self._wait:
            self._pause = asyncio.get_running_loop().call_later(self._wait, self._resume)
        self._start()

    def _resume(self) -> None:
        self._pause = None
        self._start()

    async def _send_group(self) -> None:
        """In a task of its own: when it begins, all that was submitted in the same turn of the event loop is waiting."""
        if not (group := self._take_group()):
            return
        try:
            await self._answer(group)
        except BaseException as error:
            if isinstance(error, UNAVAILABLE) and not isinstance(error, MAYBE_OF_ONE_ITEM):
                self._put_back(group, error)
                return
            fail(group, error)
        self._max_items, self._wait = MAX_ITEMS, 0.0

    def _put_back(self, group: Sequence[Waiter[Item, Answer]], error: BaseException) -> None:
        """Behind the others, so that an item that is at fault is not first again."""
        self._waiting.extend(waiter for waiter in group if not waiter.answer.done())
        self._max_items = max(1, len(group) // 2)
        self._wait = min(2 * self._wait or retry.FIRST_WAIT_SECONDS, retry.LONGEST_WAIT_SECONDS)
        fields = {"items": len(group), "error": mask_error(error), "wait_seconds": self._wait}
        log.warning("dependency.unavailable", dependency="database", **fields)

    def _take_group(self) -> list[Waiter[Item, Answer]]:
        group: list[Waiter[Item, Answer]] = []
        room = MAX_SIZE
        while self._waiting and len(group) < self._max_items and (not group or self._waiting[0].size <= room):
            waiter = self._waiting.popleft()
            if not waiter.answer.cancelled():
                waiter.statement = self._under_way
                group.append(waiter)
                room -= waiter.size
        return group

    async def _send(self, waiter: Waiter[Item, Answer]) -> None:
        try:
            await self._answer([waiter])
        except BaseException as error:
            fail([waiter], error)

    async def _answer(self, group: Sequence[Waiter[Item, Answer]]) -> None:
        answers = await self._run([waiter.item for waiter in group])
        for waiter, answer in list(zip(group, answers, strict=True)):
            if not waiter.answer.done():
                waiter.answer.set_result(answer)


def fail(group: Sequence[Waiter[Item, Answer]], error: BaseException) -> None:
    """Raise the error in each caller. A statement that was itself cancelled is an error as well: its callers were not cancelled."""
    if len(group) > 1:
        log.warning("database.group_failed", items=len(group), error=mask_error(error))
    raised = error if isinstance(error, Exception) else asyncpg.InterfaceError("the statement was interrupted")
    for waiter in group:
        if not waiter.answer.done():
            waiter.answer.set_exception(raised)
    if raised is not error:
        raise error
