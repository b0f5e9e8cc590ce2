"""A process that a bench starts: a module of ours, ready when it says so, killed at the end."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

READY_SECONDS = 90.0


@dataclass
class Child:
    """`said` is the end of what it wrote to its standard error until it was ready."""

    process: asyncio.subprocess.Process
    said: str = ""

    async def hear(self, word: str | None) -> None:
        """Read until it says the word; without one, to the end."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if word:
                self.said = (self.said + line.decode(errors="replace"))[-4000:]
                if word in self.said:
                    return
        if word:
            raise RuntimeError(f"it ended before it was ready:\n{self.said}")


@asynccontextmanager
async def child(words: Sequence[str], environment: Mapping[str, str], ready: str = "actors.ready") -> AsyncIterator[Child]:
    """`python -m WORDS…`, once it is ready. What it says after that is read and dropped."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *words, env=dict(environment), stdin=pipe, stderr=pipe)
    started, listening = Child(process), None
    try:
        async with asyncio.timeout(READY_SECONDS):
            await started.hear(ready)
        listening = asyncio.create_task(started.hear(None))
        yield started
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if listening:
            await listening
