"""A process that serves actors and dies once by SIGKILL at a named point of a delivery's life: `python -m tests.support.crash_points POINT MARKER STEP…`.

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

from bus.amqp.publisher import Publisher
from bus.observability.logs import configure_logging
from bus.persistence.inbox import PostgresInbox
from bus.worker import consumer
from bus.worker.worker import serve
from ops.registry import load_actors
from tests.chaos.mutations import apply_mutation
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR

CRASH_POINTS: dict[str, tuple[Any, str]] = {
    "before-handle": (consumer.DeliveryConsumer, "_handle"),
    "before-remember": (PostgresInbox, "_remember"),
    "before-publish": (Publisher, "post_until_confirmed"),
    "before-ack": (consumer, "_settle"),
}


def arm_crash_point(crash_point: str, marker_file: Path) -> None:
    place, name = CRASH_POINTS[crash_point]
    setattr(place, name, crash_once(getattr(place, name), marker_file))


def crash_once(step: Callable[..., Any], marker_file: Path) -> Callable[..., Any]:
    @wraps(step)
    async def die_once(*args: Any) -> Any:
        if not marker_file.exists():
            marker_file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return await step(*args)

    return die_once


def main(crash_point: str, marker: str, *steps: str) -> None:
    configure_logging()
    apply_mutation()
    if crash_point != "never":
        arm_crash_point(crash_point, Path(marker))
    staff = load_actors([step for step in steps if step != "image"])
    painters = [FAKE_IMAGE_ACTOR] if "image" in steps else []
    asyncio.run(serve([*painters, *staff.actors], staff.adapters))


if __name__ == "__main__":
    main(*sys.argv[1:])
