"""Pools of warm decoder processes. A process that exceeds a limit is killed, and the next job of its thread starts another.

A call costs about 1 ms beside the transfer of what was decoded, the start of a process 0.2 s.
"""

import asyncio
import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from actors.decoding.protocol import receive_frame, send_frame
from bus.errors import PermanentError, TemporaryError

IMPORT_ROOT = Path(__file__).parents[2]
SOCKET_BUFFER_BYTES = 1 << 20
POOL_SIZE = min(4, max(2, os.cpu_count() or 2))
"""Processes of a pool; further jobs wait."""
START_SECONDS = 60.0
MAX_STARTS = 2
"""A process may die for a reason that is not the file's, such as memory that the whole machine lacks; then a new one tries it again."""

Answer = tuple[dict[str, Any], bytearray]
log = structlog.get_logger()


@dataclass(frozen=True)
class Job:
    """A kind of file, the decoder's arguments, and the limits of one call. `wall_seconds` does not count the wait for a free process.

    `broken_code` and `costly_code`: of the PermanentError for a file that is damaged, and for one that exceeds the limits.
    `retirement_bytes`: a process whose memory has been larger ends after its answer; None: the default of all jobs.
    """

    kind: str
    arguments: dict[str, Any]
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    max_answer_bytes: int
    broken_code: str
    costly_code: str
    retirement_bytes: int | None = None

    def to_request(self) -> dict[str, Any]:
        limits = {"cpu_seconds": self.cpu_seconds, "memory_bytes": self.memory_bytes, "retirement_bytes": self.retirement_bytes}
        return {"job": self.kind, "arguments": self.arguments} | limits

    def too_costly(self, cost: str) -> PermanentError:
        return PermanentError(self.costly_code, f"Decoding the {self.kind} takes {cost}. It is malicious, or must be simplified.")

    def broken(self, reason: str) -> PermanentError:
        return PermanentError(self.broken_code, f"The {self.kind} is damaged or malicious: {reason}.")


class DecoderDied(Exception):
    """The process ended without an answer."""


@dataclass
class DecoderProcess:
    """One process and the socket to it. Starting it raises OSError when the system has no room for another process."""

    connection: socket.socket = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.connection, theirs = socket.socketpair()
        for end in (self.connection, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "actors.decoding.process", str(theirs.fileno())],
                env={"PYTHONPATH": str(IMPORT_ROOT), "PYTHONUTF8": "1"},  # and no secret of this process
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        self.connection.settimeout(START_SECONDS)
        try:
            receive_frame(self.connection, 0)
        except (OSError, EOFError) as error:
            raise OSError(f"the process does not start, its status is {self.close()}") from error
        self.connection.settimeout(None)

    def exchange(self, job: Job, data: bytes) -> Answer:
        """Raises DecoderDied."""
        try:
            send_frame(self.connection, job.to_request(), data)
            header, body = receive_frame(self.connection, job.max_answer_bytes)
            retires = header.pop("retires")
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DecoderDied(repr(error)) from None  # also for an answer of another form, after which the process is not used again
        if retires:
            self.close()
        return header, body

    def close(self) -> int:
        """End the process; its status, negative for a signal. Only the thread that uses the process may call this."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


@dataclass(eq=False)
class Call:
    """One job with its file. `kill` may be called from any thread, also before the job begins."""

    job: Job
    data: bytes
    killed: bool = False
    running: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        self.killed = True
        running = self.running
        if running is not None:
            running.kill()

    @contextmanager
    def time_limit(self, decoder: DecoderProcess) -> Iterator[None]:
        timer = threading.Timer(self.job.wall_seconds, self.kill)
        timer.daemon = True
        self.running = decoder.process
        if self.killed:
            decoder.process.kill()
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self.running = None


class DecoderPool:
    """A few threads, each with its own process. The processes start when they are first needed."""

    def __init__(self, size: int = POOL_SIZE) -> None:
        self._threads = ThreadPoolExecutor(size, "decoder")
        self._own = threading.local()
        self._decoders: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()
        atexit.register(self.close)

    def decode(self, job: Job, data: bytes) -> Answer:
        """What the decoder answered; blocks. Raises PermanentError, or TemporaryError("decoder-unavailable")."""
        return self._threads.submit(self._run, Call(job, data)).result()

    async def decode_async(self, job: Job, data: bytes) -> Answer:
        """As `decode`; a cancelled call kills its process."""
        call = Call(job, data)
        try:
            return await asyncio.wrap_future(self._threads.submit(self._run, call))
        except asyncio.CancelledError:
            call.kill()
            raise

    def close(self) -> None:
        for process in list(self._decoders):
            process.kill()
            process.wait()

    def _run(self, call: Call) -> Answer:
        for _ in range(MAX_STARTS):
            decoder = self._get_decoder()
            try:
                with call.time_limit(decoder):
                    header, body = decoder.exchange(call.job, call.data)
            except DecoderDied:
                self._raise_for_status(call, self._discard(decoder))
                continue
            return _check_header(call.job, header), body
        raise call.job.broken("the process that decoded it died")

    def _get_decoder(self) -> DecoderProcess:
        decoder: DecoderProcess | None = getattr(self._own, "decoder", None)
        if decoder is None or decoder.process.poll() is not None:
            if decoder is not None:
                decoder.close()
            try:
                decoder = self._own.decoder = DecoderProcess()
            except OSError as error:
                raise TemporaryError(f"no decoder process can be started: {error}", code="decoder-unavailable") from error
            self._decoders.add(decoder.process)
        return decoder

    def _discard(self, decoder: DecoderProcess) -> int:
        self._own.decoder = None
        try:
            status = decoder.process.wait(1)
        except subprocess.TimeoutExpired:  # it answered with something that is no frame
            status = 0
        decoder.close()
        log.warning("decoder.died", status=status)
        return status

    def _raise_for_status(self, call: Call, status: int) -> None:
        if status == -signal.SIGPROF:
            raise call.job.too_costly(f"more than {call.job.cpu_seconds:g} s of processor time")
        if call.killed:
            raise call.job.too_costly(f"more than {call.job.wall_seconds:g} s")
        if status > 0:  # it ended by itself, which no file causes
            raise TemporaryError(f"the decoder process ended with status {status}", code="decoder-unavailable")


def _check_header(job: Job, header: dict[str, Any]) -> dict[str, Any]:
    if "too_costly" in header:
        raise job.too_costly(header["too_costly"])
    if "broken" in header:
        raise job.broken(header["broken"])
    if "code" in header:
        raise PermanentError(str(header["code"]), str(header["message"]))
    return header
