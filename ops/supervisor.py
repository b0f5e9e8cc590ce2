"""Actors as child processes: started, supervised, restarted when they exit, and stopped in order."""

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

LineWriter = Callable[[str, str], None]
"""Receives a step and a line of output of its process."""

STOP_SECONDS = 35.0
"""Slightly longer than the default grace period of an actor."""
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
STABLE_SECONDS = 60.0
"""A process that ran this long resets the backoff."""
GATEWAY = "gateway"
MAX_LINE_BYTES = 1 << 22
"""Longest line of output, in bytes: a JSON log entry with a traceback is long."""
READY_EVENTS = ("actors.ready", "gateway.ready")
"""The log events with which a worker and a gateway report that they are ready."""


@dataclass
class ChildProcess:
    """The process of one step. It is restarted when it exits."""

    step: str
    command: Sequence[str]
    environment: Mapping[str, str]
    write_line: LineWriter
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    process: Process | None = None

    async def supervise(self) -> None:
        """Run until `stop`. An exit is reported, and followed by a restart after an exponential backoff."""
        backoff = FIRST_BACKOFF_SECONDS
        while not self.stopping.is_set():
            started = time.monotonic()
            status = await self.run_once()
            if self.stopping.is_set():
                return
            if time.monotonic() - started > STABLE_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            self.write_line(self.step, f"exited with status {status}; restarts in {backoff:.1f} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)

    async def run_once(self) -> int:
        """Start the process, forward its output and return its exit status. See `exit_with_parent` for its standard input."""
        self.process = await asyncio.create_subprocess_exec(
            *self.command, env=dict(self.environment), stdin=PIPE, stdout=PIPE, stderr=STDOUT, limit=MAX_LINE_BYTES, start_new_session=True
        )
        if self.stopping.is_set():  # `stop` was called before there was a process
            await self.stop()
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            if any(event in text for event in READY_EVENTS):
                self.ready.set()
            self.write_line(self.step, text)
        self.ready.clear()
        return await self.process.wait()

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL when the process is still there after STOP_SECONDS."""
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
        """Wait until every process is ready. Raises SetupError with the names of those that are not in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.gather(*(child.ready.wait() for child in self.children))
        except TimeoutError:
            late = ", ".join(child.step for child in self.children if not child.ready.is_set())
            raise SetupError(f"Not ready after {timeout_seconds:.0f} seconds: {late}. Their output is above.") from None


def child_arguments(steps: str) -> list[str]:
    """The arguments of `atelier` for one process: the gateway, or the actors of one or several steps."""
    return ["gateway", "--exit-with-parent"] if steps == GATEWAY else ["run", "--exit-with-parent", *steps.split()]


def with_health_port(environment: Mapping[str, str], index: int) -> dict[str, str]:
    """The processes of one machine cannot share HEALTH_PORT: the first one takes it, the others take the ports after it."""
    port = environment.get("HEALTH_PORT", "")
    return {**environment, "HEALTH_PORT": str(int(port) + index)} if port.isdecimal() and int(port) else dict(environment)


@asynccontextmanager
async def open_supervisor(
    steps: Sequence[str], environment: Mapping[str, str], write_line: LineWriter, gateway_environment: Mapping[str, str] | None = None
) -> AsyncIterator[Supervisor]:
    """One process per entry, each `atelier run <step>`; an entry may name several steps, separated by blanks.

    `gateway_environment`: what replaces `environment` in the gateway's process. On exit all processes are stopped at the same time.
    """
    environments = {GATEWAY: environment if gateway_environment is None else gateway_environment}
    children = [
        ChildProcess(
            step,
            [sys.executable, "-m", "ops.cli", *child_arguments(step)],
            with_health_port(environments.get(step, environment), number),
            write_line,
        )
        for number, step in enumerate(steps)
    ]
    tasks = [asyncio.create_task(child.supervise()) for child in children]
    try:
        yield Supervisor(children)
    finally:
        with CancelScope(shield=True):
            await asyncio.gather(*(child.stop() for child in children))
            await asyncio.gather(*tasks)


def exit_with_parent() -> None:
    """Block until standard input closes, then send SIGTERM to this process. It closes when the parent ends, also when that is killed."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
