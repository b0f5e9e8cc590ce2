"""The same steps as over the bus, called one after another in one process: `python -m benchmarks.in_process_pipeline`.

Reads orders from standard input, one a line, and runs ten at once, as many as the image actor does.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bus.actor import Context, Handler, Resources, Transactional, TranslatedCommand
from bus.observability.logs import configure_logging
from bus.persistence.pool import apply_schemas
from bus.routing_slip import advance, build_command_body, is_finished, next_command
from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from bus.worker.resources import open_database
from contracts.event import Progress
from contracts.slip import CompletedStep, Slip
from contracts.steps import COMMANDS
from contracts.wire import Result
from ops.registry import load_actors

CONCURRENCY = 10
STEPS = ["image", "watermark", "upload", "webhook"]

Handlers = dict[str, Handler]


async def main() -> None:
    configure_logging("WARNING")
    components, adapter = load_actors(STEPS), load_actors(["image_generation"]).adapters[0]
    async with AsyncExitStack() as stack:
        pool, locks = await stack.enter_async_context(open_database(BusSettings()))
        if pool:
            await apply_schemas(pool, [actor.schema for actor in components.actors if actor.schema])
        resources = Resources(await stack.enter_async_context(open_claim_store(StoreSettings())), pool, locks=locks)
        handlers = {actor.step: await stack.enter_async_context(actor.open(resources)) for actor in components.actors}
        print_status("actors.ready")
        slots, tasks = asyncio.Semaphore(CONCURRENCY), set()
        while body := await asyncio.to_thread(sys.stdin.buffer.readline):
            await slots.acquire()
            tasks.add(task := asyncio.create_task(run_job(adapter.translate(body), handlers)))
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _: slots.release())
        await asyncio.gather(*tasks)


def print_status(status: str) -> None:
    sys.stderr.write(status + "\n")


async def run_job(command: TranslatedCommand, handlers: Handlers) -> None:
    """One order from step to step, by the same routing slip as on the bus."""
    step, body = command.step, command.body
    while True:
        slip = Slip.model_validate(body["slip"])
        result = await run_step(step, body, command, handlers, partial(report_progress, command, slip, handlers))
        fields = result.model_dump(mode="json", exclude_none=True)
        if is_finished(slip, fields):
            return
        completed = CompletedStep(step=step, worker="unbussed", started_at=datetime.now(UTC), seconds=0)
        step, body = next_command(advance(slip, fields, completed))


async def report_progress(command: TranslatedCommand, slip: Slip, handlers: Handlers, progress: Progress) -> None:
    if slip.on_progress:
        body = build_command_body(slip.on_progress, slip, progress=progress.model_dump(mode="json", exclude_none=True))
        await run_step(slip.on_progress.step, body, command, handlers, ignore_progress)


async def ignore_progress(_: Progress) -> None: ...


async def run_step(step: str, body: dict[str, Any], command: TranslatedCommand, handlers: Handlers, report_progress: Any) -> Result:
    context = Context(command.job_id, f"{command.message_id} {step}", 1, None, None, report_progress)
    returned = await handlers[step](COMMANDS[step].model_validate(body), context)
    return returned.result if isinstance(returned, Transactional) else returned


if __name__ == "__main__":
    asyncio.run(main())
