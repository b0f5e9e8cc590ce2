"""What follows from the exit of a process: which request is at fault, and how long to wait before a restart. Pure rules.

Requests that were running when a process exited run again, each alone. One whose process exits while it is alone, and not for the first
time, is at fault.
"""

from dataclasses import dataclass

from actors.engines.process.protocol import ProcessExit
from bus.errors import PermanentError, TemporaryError

MAX_EXITS = 2
"""A request is at fault after so many crashes or hangs of its process, at least one of them alone."""
MAX_KILLS = 3
"""The same for exits by SIGKILL while alone: these may be caused by a person, or by another process that took the memory."""


@dataclass
class CrashAttribution:
    """The process exits that one request has seen."""

    exits: int = 0
    exits_alone: int = 0
    kills_alone: int = 0

    def record_exit(self, process_exit: ProcessExit, *, alone: bool) -> None:
        self.exits += 1
        self.exits_alone += alone
        self.kills_alone += alone and process_exit.cause == "killed"

    def error_for(self, process_exit: ProcessExit) -> PermanentError | TemporaryError | None:
        """The error of a request that is at fault; None: run it again, alone."""
        if process_exit.cause == "memory":
            return self._error_for_memory(process_exit)
        if process_exit.cause == "device":
            return self._error_for_device(process_exit)
        at_fault = self.kills_alone >= MAX_KILLS if process_exit.cause == "killed" else self.exits_alone and self.exits >= MAX_EXITS
        if not at_fault:
            return None
        return PermanentError("engine-crash", f"the model process exits each time this request runs alone: {process_exit.message}")

    def _error_for_memory(self, process_exit: ProcessExit) -> TemporaryError | None:
        """A new process was the last out-of-memory fallback."""
        if self.exits_alone and self.exits >= MAX_EXITS:
            return TemporaryError(f"not enough memory, even alone in a new process: {process_exit.message}", code="out-of-memory")
        return None

    def _error_for_device(self, process_exit: ProcessExit) -> TemporaryError | None:
        """Another worker may have a sound device."""
        if self.exits_alone and self.exits >= MAX_EXITS:
            return TemporaryError(f"the device failed, also in a new process: {process_exit.message}", code="device-failed")
        return None


@dataclass
class CircuitBreaker:
    """Counts failures in a row. The first restart is immediate, then the delay doubles; from `threshold` on the breaker is open.

    `after_crash`: a process exited with requests, and none was finished since: either they or the device are at fault.
    """

    threshold: int
    initial_delay_seconds: float
    max_delay_seconds: float
    failures: int = 0
    after_crash: bool = False

    @property
    def open(self) -> bool:
        return self.failures >= self.threshold

    def record_exit(self, process_exit: ProcessExit, *, had_requests: bool) -> None:
        """Count an exit that is a failure of the engine itself.

        One that had requests had also passed its self-test: what it ran is the likelier cause; the next process is tested more thoroughly,
        and when it fails then, nothing ran. A SIGKILL comes from outside, and a device is lost, whatever ran.
        """
        self.after_crash = self.after_crash or had_requests
        if not had_requests or process_exit.cause in ("killed", "device"):
            self.failures += 1

    def record_success(self) -> None:
        """A request was finished: failures are counted anew."""
        self.failures, self.after_crash = 0, False

    def restart_delay_seconds(self) -> float:
        if self.open:
            return self.max_delay_seconds
        return 0.0 if self.failures <= 1 else min(self.initial_delay_seconds * 2 ** (self.failures - 2), self.max_delay_seconds)
