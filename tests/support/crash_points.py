"""A worker process that kills itself once at a named point of a delivery: `python -m tests.support.crash_points POINT MARKER STEP…`.

It sends itself SIGKILL when the first delivery reaches the point, after creating MARKER. Where MARKER exists, it does not.
The step `image` is served by the fake image actor.
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
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR

CRASH_POINTS: dict[str, tuple[Any, str]] = {
    "before-handle": (consumer.DeliveryConsumer, "_run_handler"),
    "before-mark-done": (PostgresInbox, "_mark_done"),
    "before-publish": (Publisher, "publish_until_confirmed"),
    "before-ack": (consumer, "_acknowledge"),
}


def arm_crash_point(crash_point: str, marker_file: Path) -> None:
    owner, name = CRASH_POINTS[crash_point]
    setattr(owner, name, crash_once(getattr(owner, name), marker_file))


def crash_once(step: Callable[..., Any], marker_file: Path) -> Callable[..., Any]:
    @wraps(step)
    async def crash_first(*args: Any) -> Any:
        if not marker_file.exists():
            marker_file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return await step(*args)

    return crash_first


def main(crash_point: str, marker: str, *steps: str) -> None:
    configure_logging()
    if crash_point != "never":
        arm_crash_point(crash_point, Path(marker))
    serve_steps(*steps)


def serve_steps(*steps: str) -> None:
    """Serve until SIGTERM, the step `image` with the fake image actor."""
    components = load_actors([step for step in steps if step != "image"])
    image_actors = [FAKE_IMAGE_ACTOR] if "image" in steps else []
    asyncio.run(serve([*image_actors, *components.actors], components.adapters))


if __name__ == "__main__":
    main(*sys.argv[1:])
