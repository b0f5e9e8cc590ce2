"""A shared resource: opened once for all its users, closed after the last, and independent of any one of them."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from actors.engines.shared_resource import SetUnready, open_shared


class Opener:
    """Opens numbered resources; opening waits for `may_open` and then raises `error`, if there is one."""

    def __init__(self) -> None:
        self.opened, self.closed, self.cancelled = 0, 0, 0
        self.error: Exception | None = None
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.set_unready: SetUnready = lambda _: None

    @asynccontextmanager
    async def open(self, set_unready: SetUnready) -> AsyncIterator[int]:
        self.set_unready = set_unready
        try:
            await self.may_open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        self.opened += 1
        try:
            yield self.opened
        finally:
            self.closed += 1


async def test_users_of_one_key_share_a_resource_until_the_last_leaves() -> None:
    shared, opener = dict[Hashable, Any](), Opener()
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        assert await first.enter_async_context(open_shared(shared, "key", opener.open)) == 1
        assert await second.enter_async_context(open_shared(shared, "key", opener.open)) == 1
        await first.aclose()
        assert (opener.opened, opener.closed) == (1, 0)
    assert (opener.opened, opener.closed, shared) == (1, 1, {})
    async with open_shared(shared, "key", opener.open) as reopened:
        assert reopened == 2


async def test_other_key_opens_another_resource() -> None:
    shared, opener = dict[Hashable, Any](), Opener()
    async with open_shared(shared, "key", opener.open) as one, open_shared(shared, "other", opener.open) as other:
        assert (one, other) == (1, 2)


async def test_users_that_arrive_while_it_opens_wait_for_the_same_resource() -> None:
    shared, opener = dict[Hashable, Any](), Opener()
    opener.may_open.clear()
    first, second = (asyncio.create_task(open_shared(shared, "key", opener.open).__aenter__()) for _ in range(2))
    await asyncio.sleep(0)
    opener.may_open.set()
    assert (await first, await second) == (1, 1)


async def test_readiness_reaches_every_present_user_and_none_that_left() -> None:
    shared, opener, first, second = dict[Hashable, Any](), Opener(), list[str | None](), list[str | None]()
    async with open_shared(shared, "key", opener.open, first.append):
        async with open_shared(shared, "key", opener.open, second.append):
            opener.set_unready("loading")
        opener.set_unready(None)
    assert (first, second) == (["loading", None], ["loading"])


async def test_cancelled_user_does_not_stop_the_opening_for_others() -> None:
    shared, opener = dict[Hashable, Any](), Opener()
    opener.may_open.clear()
    impatient, patient = (asyncio.create_task(open_shared(shared, "key", opener.open).__aenter__()) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait({impatient})
    opener.may_open.set()
    assert await patient == 1
    assert opener.cancelled == 0


async def test_last_user_that_is_cancelled_stops_the_opening() -> None:
    shared, opener = dict[Hashable, Any](), Opener()
    opener.may_open.clear()
    user = asyncio.create_task(open_shared(shared, "key", opener.open).__aenter__())
    await asyncio.sleep(0.01)
    user.cancel()
    await asyncio.wait({user})
    assert (opener.opened, opener.cancelled, shared) == (0, 1, {})


async def test_error_while_opening_is_raised_and_the_next_user_opens_anew() -> None:
    shared, opener = dict[Hashable, Any](), Opener()
    opener.error = ValueError("no model")
    with pytest.raises(ValueError, match="no model"):
        async with open_shared(shared, "key", opener.open):
            pass
    opener.error = None
    async with open_shared(shared, "key", opener.open) as resource:
        assert resource == 1


async def test_user_that_joins_an_unready_resource_gets_the_current_reason() -> None:
    shared, opener, late, later = dict[Hashable, Any](), Opener(), list[str | None](), list[str | None]()
    async with open_shared(shared, "key", opener.open):
        opener.set_unready("the device is lost")
        async with open_shared(shared, "key", opener.open, late.append):
            opener.set_unready(None)
            async with open_shared(shared, "key", opener.open, later.append):
                assert (late, later) == (["the device is lost", None], [])


async def test_failed_opening_is_not_kept_while_a_user_still_leaves() -> None:
    """A user that arrives after the failure opens anew, and keeps its resource when the users of the failed one leave."""
    shared, opener = dict[Hashable, Any](), Opener()
    opener.error = ValueError("no model")
    async with AsyncExitStack() as user:
        leaving = open_shared(shared, "key", opener.open)
        failed = asyncio.create_task(leaving.__aenter__())
        while not shared or not shared["key"].has_failed:
            await asyncio.sleep(0)
        opener.error = None
        assert await user.enter_async_context(open_shared(shared, "key", opener.open)) == 1
        with pytest.raises(ValueError, match="no model"):
            await failed
        assert shared["key"].listeners
        assert opener.closed == 0
    assert (opener.closed, shared) == (1, {})
