"""One server for several processes (`atelier up` beside `atelier demo`): the first one starts it, the last one stops it.

Users are counted with file locks, which the kernel releases when a process ends. After a SIGKILL the server goes
on running, and the next user adopts it.
"""

import fcntl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Protocol

from anyio import CancelScope, create_task_group, to_thread

from ops.errors import SetupError


class Server(Protocol):
    """A server that can be started, also when it runs already, and stopped."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class SharedServer:
    """This process as one user of a server whose lock files are in `folder`. `acquire` and `release` block; both may be called twice."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._lock_file: IO[bytes] | None = None

    def acquire(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            if self._lock_file is None:
                self._lock_file = (self._folder / "users.lock").open("ab")
                fcntl.flock(self._lock_file, fcntl.LOCK_SH)
            self._server.start()

    def release(self) -> None:
        if self._lock_file is None:
            return
        with self._exclusive(), self._lock_file:
            if self._is_last_user():
                self._server.stop()
        self._lock_file = None

    def _is_last_user(self) -> bool:
        assert self._lock_file is not None
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with (self._folder / "starting.lock").open("ab") as lock_file:
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            yield


@asynccontextmanager
async def shared_servers(*servers: SharedServer) -> AsyncIterator[None]:
    """Acquire all servers at the same time, and release them on exit. Raises the first SetupError."""
    try:
        await run_in_threads([share.acquire for share in servers])
        yield
    finally:
        with CancelScope(shield=True):
            await run_in_threads([share.release for share in servers])


async def run_in_threads(calls: Sequence[Callable[[], None]]) -> None:
    """Run each call in a thread of its own. All of them end before the first SetupError is raised."""
    try:
        async with create_task_group() as group:
            for call in calls:
                group.start_soon(to_thread.run_sync, call)
    except* SetupError as errors:
        raise first_error(errors) from None


def first_error(group: BaseExceptionGroup[SetupError]) -> SetupError:
    error = group.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error
