"""A process that serves actors and dies once by SIGKILL at a named point of a delivery's life: `python -m tests.dying POINT MARKER STEP…`.

It dies the first time that one of its deliveries comes to the point, and writes MARKER before. Started again, it finds MARKER and lives.
The step `image` is served by the painter.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from bus import receive
from bus.inbox import PostgresInbox
from bus.logs import open_logs
from bus.outbox import Outbox
from bus.serve import serve
from ops.workshop import hire
from tests.chaos.mutations import mutate
from tests.painter import PAINTER

POINTS: dict[str, tuple[Any, str]] = {
    "before-handle": (receive.Counter, "_handle"),
    "before-remember": (PostgresInbox, "_remember"),
    "before-publish": (Outbox, "post_until_confirmed"),
    "before-ack": (receive, "_settle"),
}


def arm(point: str, marker: Path) -> None:
    place, name = POINTS[point]
    setattr(place, name, dying(getattr(place, name), marker))


def dying(step: Callable[..., Any], marker: Path) -> Callable[..., Any]:
    @wraps(step)
    async def die_once(*args: Any) -> Any:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return await step(*args)

    return die_once


def main(point: str, marker: str, *steps: str) -> None:
    open_logs()
    mutate()
    if point != "never":
        arm(point, Path(marker))
    staff = hire([step for step in steps if step != "image"])
    painters = [PAINTER] if "image" in steps else []
    asyncio.run(serve([*painters, *staff.actors], staff.adapters))


if __name__ == "__main__":
    main(*sys.argv[1:])
