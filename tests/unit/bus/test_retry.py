"""`retry_while_unavailable`: which errors it waits for, and how long."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from bus import retry
from bus.errors import PermanentError, PublishError, TemporaryError, UnroutableMessage
from bus.retry import retry_while_unavailable


class FailingCall:
    """Raises each of `errors` in turn, then returns 7."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors: Iterator[BaseException] = iter(errors)
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        if error := next(self._errors, None):
            raise error
        return 7


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of every requested wait; `sleep` is replaced and returns at once."""
    seconds: list[float] = []

    async def sleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr(retry.asyncio, "sleep", sleep)
    return seconds


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("refused"),
        TimeoutError(),
        PublishError("no confirm"),
        UnroutableMessage("no queue"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.AdminShutdownError("restarting"),
        asyncpg.TooManyConnectionsError("too many"),
        asyncpg.ReadOnlySQLTransactionError("failover"),
    ],
)
async def test_unavailable_dependency_is_waited_for(error: Exception, waits: list[float]) -> None:
    call = FailingCall(error, error)
    assert await retry_while_unavailable(call, "database") == 7
    assert (call.count, waits) == (3, [0.2, 0.4])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bug"),
        PermanentError("code", "x"),
        TemporaryError("x"),
        asyncpg.UniqueViolationError("duplicate"),
        asyncio.CancelledError(),
    ],
)
async def test_other_errors_are_raised_at_once(error: BaseException, waits: list[float]) -> None:
    call = FailingCall(error)
    with pytest.raises(type(error)):
        await retry_while_unavailable(call, "database")
    assert (call.count, waits) == (1, [])


async def test_wait_doubles_up_to_its_limit(waits: list[float]) -> None:
    await retry_while_unavailable(FailingCall(*[OSError()] * 8), "broker")
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
