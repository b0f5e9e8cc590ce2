"""Actors as child processes: started, watched, started again when they die, and told to leave in order."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from anyio import CancelScope

from ops.errors import SetupError


def exit_with_parent() -> None:
    """The starter holds the other end of standard input. When it dies, however it dies, this process leaves in order."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


LineWriter = Callable[[str, str], None]
"""Takes a step and a line that its process wrote."""


STOP_SECONDS = 35.0
"""A little more than the grace that an actor gives its running work."""


FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0


STABLE_SECONDS = 60.0
"""An actor that lived this long starts again without a wait."""


GATEWAY = "gateway"


MAX_LINE_BYTES = 1 << 22
"""Bytes of one line of output: a JSON log entry with a stack is long."""


READY_EVENTS = ("actors.ready", "gateway.ready")
"""The log events by which a process says that it takes deliveries, or requests."""


@dataclass
class ChildProcess:
    """One step's process and its successors."""

    step: str
    command: Sequence[str]
    environment: Mapping[str, str]
    write_line: LineWriter
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    process: Process | None = None

    async def supervise(self) -> None:
        """Run until `leave`. A death is named, and followed by a new start after a growing wait."""
        backoff = FIRST_BACKOFF_SECONDS
        while not self.stopping.is_set():
            born = time.monotonic()
            status = await self.run_once()
            if self.stopping.is_set():
                return
            if time.monotonic() - born > STABLE_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            self.write_line(self.step, f"died with status {status}; starts again in {backoff:.1f} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)

    async def run_once(self) -> int:
        """Standard input is a leash: the child leaves when its other end is gone, so it never outlives a killed parent."""
        self.process = await asyncio.create_subprocess_exec(
            *self.command, env=dict(self.environment), stdin=PIPE, stdout=PIPE, stderr=STDOUT, limit=MAX_LINE_BYTES, start_new_session=True
        )
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            if any(event in text for event in READY_EVENTS):
                self.ready.set()
            self.write_line(self.step, text)
        self.ready.clear()
        return await self.process.wait()

    async def stop(self) -> None:
        """Ask the process to leave, and make it leave when it takes too long."""
        self.stopping.set()
        if self.process is None or self.process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
            except TimeoutError:
                self.process.kill()


@dataclass(frozen=True)
class Supervisor:
    children: Sequence[ChildProcess]

    async def wait_until_ready(self, *, timeout_seconds: float) -> None:
        """Wait until every actor takes deliveries. Raises SetupError with the names of those that do not."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.gather(*(member.ready.wait() for member in self.children))
        except TimeoutError:
            late = ", ".join(member.step for member in self.children if not member.ready.is_set())
            raise SetupError(f"Not ready after {timeout_seconds:.0f} seconds: {late}. Their own words stand above.") from None


def child_arguments(steps: str) -> list[str]:
    """The command line of one process. The front door is no actor."""
    return ["gateway", "--leash"] if steps == GATEWAY else ["run", "--leash", *steps.split()]


def with_health_port(environment: Mapping[str, str], index: int) -> dict[str, str]:
    """The processes of one machine cannot share HEALTH_PORT: the first has it, the others the ports after it."""
    port = environment.get("HEALTH_PORT", "")
    return {**environment, "HEALTH_PORT": str(int(port) + index)} if port.isdecimal() and int(port) else dict(environment)


@asynccontextmanager
async def open_supervisor(steps: Sequence[str], environment: Mapping[str, str], write_line: LineWriter) -> AsyncIterator[Supervisor]:
    """One process per entry, each `atelier run <step>`; an entry may name several steps, with blanks between.

    At the end all are told to leave at once, and waited for.
    """
    members = [
        ChildProcess(step, [sys.executable, "-m", "ops.cli", *child_arguments(step)], with_health_port(environment, number), write_line)
        for number, step in enumerate(steps)
    ]
    watches = [asyncio.create_task(member.supervise()) for member in members]
    try:
        yield Supervisor(members)
    finally:
        with CancelScope(shield=True):
            await asyncio.gather(*(member.stop() for member in members))
            await asyncio.gather(*watches)
