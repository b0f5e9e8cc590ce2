"""A streamed reply as it comes: deltas, numbered from 0, then the result, which says how many there were. A number left out is an error."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any


class Gap(Exception):
    """A delta is missing, or the work began anew after a part of it was given out."""


@dataclass(frozen=True)
class Piece:
    """A part of a streamed reply: a delta's fields, or at last the result's."""

    body: dict[str, Any]
    final: bool = False


@dataclass
class Deltas:
    """The deltas of one reply. `count`: how many were given out."""

    arrived: "asyncio.Queue[dict[str, Any] | None]" = field(default_factory=asyncio.Queue)
    count: int = 0

    def put(self, body: dict[str, Any]) -> None:
        self.arrived.put_nowait(body)

    def end(self) -> None:
        self.arrived.put_nowait(None)

    async def each(self, seconds: float) -> AsyncIterator[Piece]:
        """Until the reply is there. Raises Gap, and TimeoutError when it is not there in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (body := await asyncio.wait_for(self.arrived.get(), until - loop.time())) is not None:
            self.check(body.get("sequence"))
            self.count += 1
            yield Piece(body)

    def check(self, number: Any) -> None:
        """Raises Gap unless `number` comes next."""
        if number != self.count:
            raise Gap(f"delta {self.count} was to come, {number} came: a part is lost, or the work began anew; ask again")
