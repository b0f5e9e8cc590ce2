"""How many bytes requests hold in memory at once, over all of them and for each tenant. A guard of a request lasts until it is answered."""

import asyncio
from collections import Counter
from contextlib import ExitStack

from fastapi import Request
from starlette.types import Scope

from gateway.callers import caller_of
from gateway.problems import HttpProblem

WAIT_SECONDS = 5.0


class MemoryBudget:
    """Bytes that may be held at once. One tenant may hold half of them, so that another one's requests go on."""

    def __init__(self, limit_bytes: int, what: str) -> None:
        self._limit_bytes, self._what = limit_bytes, what
        self.held_bytes, self._held_by_tenant = 0, Counter[str | None]()
        self.share_bytes = limit_bytes // 2
        """What one tenant may hold."""
        self._released = asyncio.Condition()
        self._notifying: set[asyncio.Task[None]] = set()

    async def reserve(self, tenant: str | None, count: int, wait_seconds: float | None = None) -> "Reservation":
        """Wait until the bytes are free, by default for WAIT_SECONDS.

        Raises HttpProblem(413) when they never are, HttpProblem(503) when they are not in time.
        """
        share = self.share_bytes
        if count > share:
            raise HttpProblem(413, "Content Too Large", f"{count} bytes of {self._what}; a request may hold {share} of them in memory")
        try:
            async with asyncio.timeout(WAIT_SECONDS if wait_seconds is None else wait_seconds), self._released:
                await self._released.wait_for(
                    lambda: self.held_bytes + count <= self._limit_bytes and self._held_by_tenant[tenant] + count <= share
                )
                return Reservation(self, tenant, count)
        except TimeoutError:
            detail = f"the {self._what} of other requests fill the memory for them; send fewer at once"
            raise HttpProblem(503, "busy", detail, {"Retry-After": "5"}) from None

    def add(self, tenant: str | None, count: int) -> None:
        self.held_bytes += count
        self._held_by_tenant[tenant] += count
        if not self._held_by_tenant[tenant]:
            del self._held_by_tenant[tenant]
        if count < 0:
            task = asyncio.ensure_future(self._notify())
            self._notifying.add(task)
            task.add_done_callback(self._notifying.discard)

    async def _notify(self) -> None:
        async with self._released:
            self._released.notify_all()


class Reservation:
    """Bytes that one request holds."""

    def __init__(self, budget: MemoryBudget, tenant: str | None, count: int) -> None:
        self._budget, self._tenant, self.count = budget, tenant, 0
        self.resize(count)

    async def grow(self, count: int) -> None:
        """Hold `count` bytes as soon as they are free; none until then, so that requests do not wait for each other.

        Raises like `MemoryBudget.reserve`.
        """
        self.resize(0)
        larger = await self._budget.reserve(self._tenant, count)
        larger.release()
        self.resize(count)

    def resize(self, count: int) -> None:
        """Hold `count` bytes from now on, for instance when the size of a body is known at last."""
        self._budget.add(self._tenant, count - self.count)
        self.count = count

    def release(self) -> None:
        self.resize(0)


def guards_of(scope: Scope) -> ExitStack:
    """Closed by the admission middleware when the response has been sent, or the client has gone."""
    guards: ExitStack = scope["state"]["guards"]
    return guards


async def hold_bytes(request: Request, budget: MemoryBudget, count: int, wait_seconds: float | None = None) -> None:
    """Reserve bytes until the request has been answered: once in a request, or it waits for itself. Raises like `MemoryBudget.reserve`."""
    reservation = await budget.reserve(caller_of(request), count, wait_seconds)
    guards_of(request.scope).callback(reservation.release)
