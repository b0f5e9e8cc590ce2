"""A worker process whose actor kills it with SIGKILL at the text `poison`. Arguments: step and store URL; the rest is environment."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus.actor import Actor, Context, Handler, Resources
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from tests.support.broker_client import Echo, Echoed


async def echo_or_die(command: Echo, context: Context) -> Echoed:
    if command.text == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.05)
    return Echoed(text=command.text)


@asynccontextmanager
async def open_echo(resources: Resources) -> AsyncIterator[Handler]:
    yield echo_or_die


async def main(step: str, store_url: str) -> None:
    actor = Actor(step=step, command=Echo, result=Echoed, open=open_echo, timeout_seconds=5, prefetch=16)
    async with Worker((actor,), (), BusSettings(), StoreSettings(store_url=store_url)).run():
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
