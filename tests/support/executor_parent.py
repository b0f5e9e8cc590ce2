"""Runs an executor with an endless request and writes the model process's id into the file given as argument, until it is killed."""

import asyncio
import sys
from pathlib import Path

from actors.engines.process.executor import open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from tests.support.faulty_engine import FaultyRequest


async def main() -> None:
    spec = EngineSpec("tests.support.faulty_engine:open_faulty_engine")
    async with open_executor(spec, ExecutorSettings(), max_in_flight=1, capacity=1) as executor:
        await executor.ready()
        asyncio.get_running_loop().call_later(0.2, Path(sys.argv[1]).write_text, f"{executor.process_id}\n")
        await executor.run(FaultyRequest(fault="hang"))


asyncio.run(main())
