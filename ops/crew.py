"""Actors as child processes: started, watched, started again when they die, and told to leave in order."""

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from anyio import CancelScope

from ops.errors import SetupError

Say = Callable[[str, str], None]
"""Takes a step and a line that its process wrote."""

LEAVE_SECONDS = 35.0
"""A little more than the grace that an actor gives its running work."""

FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.5, 30.0
SETTLED_SECONDS = 60.0
"""An actor that lived this long starts again without a wait."""

GATEWAY = "gateway"

LONGEST_LINE = 1 << 22
"""Bytes of one line of output: a JSON log entry with a stack is long."""

READY = ("actors.ready", "gateway.ready")
"""The log events by which a process says that it takes deliveries, or requests."""


@dataclass
class Member:
    """One step's process and its successors."""

    step: str
    command: Sequence[str]
    environment: Mapping[str, str]
    say: Say
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    process: Process | None = None

    async def keep_alive(self) -> None:
        """Run until `leave`. A death is named, and followed by a new start after a growing wait."""
        backoff = FIRST_BACKOFF_SECONDS
        while not self.leaving.is_set():
            born = time.monotonic()
            status = await self.live_once()
            if self.leaving.is_set():
                return
            if time.monotonic() - born > SETTLED_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            self.say(self.step, f"died with status {status}; starts again in {backoff:.1f} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self.leaving.wait(), backoff)
            backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)

    async def live_once(self) -> int:
        """Standard input is a leash: the child leaves when its other end is gone, so it never outlives a killed parent."""
        self.process = await asyncio.create_subprocess_exec(
            *self.command, env=dict(self.environment), stdin=PIPE, stdout=PIPE, stderr=STDOUT, limit=LONGEST_LINE, start_new_session=True
        )
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            if any(event in text for event in READY):
                self.ready.set()
            self.say(self.step, text)
        self.ready.clear()
        return await self.process.wait()

    async def leave(self) -> None:
        """Ask the process to leave, and make it leave when it takes too long."""
        self.leaving.set()
        if self.process is None or self.process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), LEAVE_SECONDS)
            except TimeoutError:
                self.process.kill()


@dataclass(frozen=True)
class Crew:
    members: Sequence[Member]

    async def ready(self, *, timeout_seconds: float) -> None:
        """Wait until every actor takes deliveries. Raises SetupError with the names of those that do not."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.gather(*(member.ready.wait() for member in self.members))
        except TimeoutError:
            late = ", ".join(member.step for member in self.members if not member.ready.is_set())
            raise SetupError(f"Not ready after {timeout_seconds:.0f} seconds: {late}. Their own words stand above.") from None


def words_of(entry: str) -> list[str]:
    """The command line of one process. The front door is no actor."""
    return ["gateway", "--leash"] if entry == GATEWAY else ["run", "--leash", *entry.split()]


def with_own_port(environment: Mapping[str, str], number: int) -> dict[str, str]:
    """The processes of one machine cannot share HEALTH_PORT: the first has it, the others the ports after it."""
    port = environment.get("HEALTH_PORT", "")
    return {**environment, "HEALTH_PORT": str(int(port) + number)} if port.isdecimal() and int(port) else dict(environment)


@asynccontextmanager
async def open_crew(steps: Sequence[str], environment: Mapping[str, str], say: Say) -> AsyncIterator[Crew]:
    """One process per entry, each `atelier run <step>`; an entry may name several steps, with blanks between.

    At the end all are told to leave at once, and waited for.
    """
    members = [
        Member(step, [sys.executable, "-m", "ops.cli", *words_of(step)], with_own_port(environment, number), say)
        for number, step in enumerate(steps)
    ]
    watches = [asyncio.create_task(member.keep_alive()) for member in members]
    try:
        yield Crew(members)
    finally:
        with CancelScope(shield=True):
            await asyncio.gather(*(member.leave() for member in members))
            await asyncio.gather(*watches)
