"""A process that a bench starts: a module of ours, ready when it says so, killed at the end."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

READY_TIMEOUT_SECONDS = 90.0


@dataclass
class StartedProcess:
    """`said` is the end of what it wrote to its standard error until it was ready."""

    process: asyncio.subprocess.Process
    ready_output: str = ""

    async def read_until(self, marker: str | None) -> None:
        """Read until it says the word; without one, to the end."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if marker:
                self.ready_output = (self.ready_output + line.decode(errors="replace"))[-4000:]
                if marker in self.ready_output:
                    return
        if marker:
            raise RuntimeError(f"it ended before it was ready:\n{self.ready_output}")


@asynccontextmanager
async def start_process(
    arguments: Sequence[str], environment: Mapping[str, str], ready_marker: str = "actors.ready"
) -> AsyncIterator[StartedProcess]:
    """`python -m WORDS…`, once it is ready. What it says after that is read and dropped."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, env=dict(environment), stdin=pipe, stderr=pipe)
    started, listening = StartedProcess(process), None
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            await started.read_until(ready_marker)
        listening = asyncio.create_task(started.read_until(None))
        yield started
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if listening:
            await listening
