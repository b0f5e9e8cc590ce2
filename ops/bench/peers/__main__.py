"""One end of one peer. A sender reads runs as JSON lines and answers each with its times; a worker says when a run is done."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from importlib import import_module

from ops.bench.peers import PEERS
from ops.bench.peers.run import Place, Run


async def main(name: str, end: str, place: Place) -> None:
    module = import_module(f"ops.bench.peers.{PEERS[name].module}")
    if end == "worker":
        async with module.open_worker(place):
            say("ready")
            await asyncio.Event().wait()
    async with module.open_sender(place) as sender:
        say("ready")
        async for line in lines():
            run = Run(**json.loads(line))
            began = time.monotonic()
            await getattr(sender, run.mode)(run)
            say(began=began, ended=time.monotonic())


def say(word: str = "", **times: float) -> None:
    sys.stdout.write((word or json.dumps(times)) + "\n")
    sys.stdout.flush()


async def lines() -> AsyncIterator[str]:
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Place(**json.loads(sys.argv[3]))))
