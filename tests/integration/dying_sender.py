"""A process that stages or sends one replay and kills itself with -9 at a named step. Arguments: broker, database, step, and what."""

import asyncio
import os
import signal
import sys
from typing import Any

from bus.database import open_database
from bus.dead_letters import replay
from bus.dead_letters.sender import Sender
from bus.outbox import Outbox, open_outbox
from bus.settings import BusSettings
from contracts.dead_letter import ReplayDeadLetters, Selection

HALF = 15


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingSender(Sender):
    step = ""

    async def _mark(self, *arguments: Any) -> Any:
        if self.step == "after the confirms":
            die()
        marked = await super()._mark(*arguments)
        if self.step == "after the mark":
            die()
        return marked

    async def send_some(self, replay_id: int | None = None) -> int | None:
        sent = await super().send_some(replay_id)
        if self.step == "after the commit":
            die()
        return sent


class DyingOutbox(Outbox):
    step = ""
    posted = 0

    async def post(self, *letters: Any) -> None:
        if self.step == "before the first is posted":
            die()
        await super().post(*letters)
        self.posted += 1
        if self.step == "half-way through the confirms" and self.posted == HALF:
            die()


async def main(amqp_url: str, database_url: str, step: str, what: str) -> None:
    settings = BusSettings.model_validate({"amqp_url": amqp_url, "database_url": database_url})
    async with open_database(settings) as pool, open_outbox(settings) as outbox:
        assert pool is not None
        if step == "while staging":
            replay.SQL["replayable"] = "select pg_sleep(2), $1::jsonb"
            asyncio.get_running_loop().call_later(0.7, die)
            await replay.stage(pool, ReplayDeadLetters(selection=Selection(group=what), dry_run=False))
        outbox.__class__, DyingOutbox.step, DyingSender.step = DyingOutbox, step, step
        await DyingSender(pool, outbox).finish(int(what))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
