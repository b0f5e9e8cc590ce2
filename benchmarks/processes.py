"""Child processes of a benchmark: a server `python -m …`, ready when its standard error says so, killed at the end; a command that ends."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

READY_TIMEOUT_SECONDS = 90.0
POLL_SECONDS = 0.05
CLEANUP_SECONDS = 60.0
"""So long a command may take to end the services that it started."""


def run_command(
    command: Sequence[str], *, timeout: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run`, which kills at once: a command that is late, or whose parent is interrupted, gets SIGTERM and CLEANUP_SECONDS.

    It is in a process group of its own, so that Ctrl-C in the terminal does not reach it a second time while it cleans up.
    """
    pipe, no_input = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdin=no_input, stdout=pipe, stderr=pipe, text=True, process_group=0)
    with process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.terminate()
            try:
                process.communicate(timeout=CLEANUP_SECONDS)
            except subprocess.TimeoutExpired:
                pass  # the first exception is raised
            finally:
                process.kill()
                process.wait()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@dataclass
class StartedProcess:
    """`ready_output`: the end of what the process wrote to its standard error until it was ready."""

    process: asyncio.subprocess.Process
    ready_output: str = ""

    @property
    def port(self) -> int:
        return parse_port(self.ready_output)

    async def read_until(self, marker: str | None) -> None:
        """Read standard error until the marker appears; without one, to its end. Raises RuntimeError when the process ends before."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if marker:
                self.ready_output = (self.ready_output + line.decode(errors="replace"))[-4000:]
                if marker in self.ready_output:
                    return
        if marker:
            raise RuntimeError(f"the process ended before it was ready:\n{self.ready_output}")


@asynccontextmanager
async def start_process(
    arguments: Sequence[str], environment: Mapping[str, str], ready_marker: str = "actors.ready"
) -> AsyncIterator[StartedProcess]:
    """`python -m ARGUMENTS…`, once it is ready. What it writes after that is read and dropped."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, env=dict(environment), stdin=pipe, stderr=pipe)
    started, drain = StartedProcess(process), None
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            await started.read_until(ready_marker)
        drain = asyncio.create_task(started.read_until(None))
        yield started
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if drain:
            await drain


@asynccontextmanager
async def start_logged_process(
    arguments: Sequence[str], environment: Mapping[str, str], ready_marker: str, log_file: Path
) -> AsyncIterator[StartedProcess]:
    """The same, its standard error in a file: a process that logs each request wakes nobody who reads it meanwhile."""
    with log_file.open("wb") as log:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, env=dict(environment), stdin=pipe, stderr=log)
    started = StartedProcess(process)
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            while ready_marker not in started.ready_output:
                if process.returncode is not None:
                    raise RuntimeError(f"the process ended before it was ready:\n{started.ready_output}")
                await asyncio.sleep(POLL_SECONDS)
                started.ready_output = read_end(log_file)
        yield started
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def read_end(log_file: Path) -> str:
    return log_file.read_text(errors="replace")[-4000:]


def parse_port(text: str) -> int:
    """The port of the last local URL in a text."""
    return int(text.rpartition("http://127.0.0.1:")[2].split('"')[0].split()[0])
