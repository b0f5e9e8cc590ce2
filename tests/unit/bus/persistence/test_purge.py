"""Retention: a purge that fails once is tried again, and what a process keeps in memory is bounded."""

import asyncio

import asyncpg
import pytest

from bus.persistence import inbox as inbox_module
from bus.persistence.inbox import NullInbox
from bus.persistence.purge import purge_periodically


async def test_purge_continues_after_database_error() -> None:
    """Before, one error ended it for the life of the process."""
    calls = 0

    async def purge() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncpg.PostgresConnectionError("gone")
        if calls == 2:
            raise TimeoutError
        return 5

    async with purge_periodically("inbox", purge, 0.01):
        async with asyncio.timeout(5):
            while calls < 4:
                await asyncio.sleep(0.01)
    ended = calls
    await asyncio.sleep(0.05)
    assert calls == ended


async def test_inbox_without_database_remembers_a_bounded_number_of_cancelled_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "MAX_CANCELLED", 3)
    inbox = NullInbox()
    for number in range(5):
        await inbox.cancel(f"job-{number}")
    cancelled = [(await inbox.acquire("echo", f"m-{number}", f"job-{number}")).cancelled for number in range(5)]
    assert cancelled == [False, False, True, True, True]
