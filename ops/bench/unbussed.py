"""The same steps as over the bus, called one after the other in one process: `python -m ops.bench.unbussed` reads orders, a line each.

Ten orders are in hand at once, as the image actor has them.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bus.actor import Context, Handler, Tools, Transactional
from bus.adapter import Translated
from bus.database import make_tables, open_database
from bus.logs import open_logs
from bus.routing_slip import after_stop, command, depart, ends_here
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from contracts.event import Progress
from contracts.slip import Slip, Visit
from contracts.steps import COMMANDS
from contracts.wire import Result
from ops.workshop import hire

IN_HAND = 10
STEPS = ["image", "watermark", "upload", "webhook"]

Handlers = dict[str, Handler]


async def main() -> None:
    open_logs("WARNING")
    staff, adapter = hire(STEPS), hire(["image_generation"]).adapters[0]
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_database(BusSettings()))
        if pool:
            await make_tables(pool, [actor.schema for actor in staff.actors if actor.schema])
        tools = Tools(await stack.enter_async_context(open_claims(StoreSettings())), pool)
        handlers = {actor.step: await stack.enter_async_context(actor.open(tools)) for actor in staff.actors}
        say("actors.ready")
        hands, tasks = asyncio.Semaphore(IN_HAND), set()
        while body := await asyncio.to_thread(sys.stdin.buffer.readline):
            await hands.acquire()
            tasks.add(task := asyncio.create_task(job(adapter.translate(body), handlers)))
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _: hands.release())
        await asyncio.gather(*tasks)


def say(word: str) -> None:
    sys.stderr.write(word + "\n")


async def job(order: Translated, handlers: Handlers) -> None:
    """One order from stop to stop, by the very routing slip that it has on the bus."""
    step, body = order.step, order.body
    while True:
        slip = Slip.model_validate(body["slip"])
        result = await run(step, body, order, handlers, partial(report, order, slip, handlers))
        told = result.model_dump(mode="json", exclude_none=True)
        if ends_here(slip, told):
            return
        visit = Visit(step=step, worker="unbussed", started_at=datetime.now(UTC), seconds=0)
        step, body = depart(after_stop(slip, told, visit))


async def report(order: Translated, slip: Slip, handlers: Handlers, progress: Progress) -> None:
    if slip.on_progress:
        body = command(slip.on_progress, slip, progress=progress.model_dump(mode="json", exclude_none=True))
        await run(slip.on_progress.step, body, order, handlers, quiet)


async def quiet(_: Progress) -> None: ...


async def run(step: str, body: dict[str, Any], order: Translated, handlers: Handlers, tell: Any) -> Result:
    context = Context(order.job_id, f"{order.message_id} {step}", 1, None, None, tell)
    returned = await handlers[step](COMMANDS[step].model_validate(body), context)
    return returned.result if isinstance(returned, Transactional) else returned


if __name__ == "__main__":
    asyncio.run(main())
