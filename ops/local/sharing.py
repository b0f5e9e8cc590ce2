"""One server, several users (`atelier up` beside `atelier demo`): the first starts it, the last one out stops it.

Users are counted with file locks, which the kernel drops when a process dies. So a user killed with -9 leaves no trace but a
running server, and the next user takes that over.
"""

import fcntl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Protocol

from anyio import CancelScope, create_task_group, to_thread

from ops.errors import SetupError


class Server(Protocol):
    """A part that can be started over its own leftovers, and stopped."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Shared:
    """This process's share in a server whose locks lie in `folder`. `join` and `leave` block; both may be called twice."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._seat: IO[bytes] | None = None

    def join(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if self._seat is None:
                self._seat = (self._folder / "users.lock").open("ab")
                fcntl.flock(self._seat, fcntl.LOCK_SH)
            self._server.start()

    def leave(self) -> None:
        if self._seat is None:
            return
        with self._alone(), self._seat:
            if self._last():
                self._server.stop()
        self._seat = None

    def _last(self) -> bool:
        assert self._seat is not None
        try:
            fcntl.flock(self._seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "starting.lock").open("ab") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            yield


@asynccontextmanager
async def joined(*shares: Shared) -> AsyncIterator[None]:
    """All of them started at the same time, and left at the end, whatever happened. Raises the first SetupError."""
    try:
        await at_once([share.join for share in shares])
        yield
    finally:
        with CancelScope(shield=True):
            await at_once([share.leave for share in shares])


async def at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Each in a thread of its own. All of them end before the first SetupError is raised."""
    try:
        async with create_task_group() as group:
            for call in calls:
                group.start_soon(to_thread.run_sync, call)
    except* SetupError as errors:
        raise first(errors) from None


def first(group: BaseExceptionGroup[SetupError]) -> SetupError:
    error = group.exceptions[0]
    return first(error) if isinstance(error, BaseExceptionGroup) else error
