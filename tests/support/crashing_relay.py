"""A process that stages or publishes one replay and kills itself with SIGKILL at a crash point.

Arguments: broker URL, database URL, crash point, and a group id ("while staging") or else a replay id.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from bus.amqp.publisher import Publisher, open_publisher
from bus.dead_letters import replay
from bus.dead_letters.relay import ReplayRelay
from bus.persistence.pool import open_pool
from bus.settings import BusSettings
from contracts.dead_letter import ReplayDeadLetters, Selection

HALF_OF_MESSAGES = 15


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class CrashingRelay(ReplayRelay):
    crash_point = ""

    async def _record_results(self, *arguments: Any) -> Any:
        if self.crash_point == "after the confirms":
            kill_self()
        result = await super()._record_results(*arguments)
        if self.crash_point == "after the mark":
            kill_self()
        return result

    async def send_batch(self, replay_id: int | None = None) -> int | None:
        sent = await super().send_batch(replay_id)
        if self.crash_point == "after the commit":
            kill_self()
        return sent


class CrashingPublisher(Publisher):
    crash_point = ""
    published_count = 0

    async def publish(self, *messages: Any) -> None:
        if self.crash_point == "before the first publish":
            kill_self()
        await super().publish(*messages)
        self.published_count += 1
        if self.crash_point == "half-way through the confirms" and self.published_count == HALF_OF_MESSAGES:
            kill_self()


async def main(amqp_url: str, database_url: str, crash_point: str, target: str) -> None:
    settings = BusSettings.model_validate({"amqp_url": amqp_url, "database_url": database_url})
    async with open_pool(settings) as pool, open_publisher(settings) as publisher:
        assert pool is not None
        if crash_point == "while staging":
            replay.SQL["replayable"] = "select pg_sleep(2), $1::jsonb"
            asyncio.get_running_loop().call_later(0.7, kill_self)
            await replay.stage(pool, ReplayDeadLetters(selection=Selection(group=target), dry_run=False))
        publisher.__class__, CrashingPublisher.crash_point, CrashingRelay.crash_point = CrashingPublisher, crash_point, crash_point
        await CrashingRelay(pool, publisher).complete_replay(int(target))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
