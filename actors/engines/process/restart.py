"""Whose fault is the death of a process? Suspects run again alone; who dies alone, and not for the first time, is the culprit. Pure."""

from dataclasses import dataclass

from actors.engines.process.protocol import ProcessExit
from bus.errors import PermanentError, TemporaryError

MAX_EXITS = 2
"""Deaths, the last one alone, that convict an order whose process crashed or hung."""


MAX_KILLS = 3
"""The same when the process was killed with SIGKILL: that may be the work of a person, or of another process that took the memory."""


@dataclass
class CrashAttribution:
    """One order's record."""

    exits: int = 0
    exits_alone: int = 0
    kills_alone: int = 0

    def record_exit(self, process_exit: ProcessExit, *, alone: bool) -> None:
        self.exits += 1
        self.exits_alone += alone
        self.kills_alone += alone and process_exit.cause == "killed"

    def error_for(self, process_exit: ProcessExit) -> PermanentError | TemporaryError | None:
        """None: run it again, alone."""
        if process_exit.cause == "memory":
            return self._error_for_memory(process_exit)
        convicted = self.kills_alone >= MAX_KILLS if process_exit.cause == "killed" else self.exits_alone and self.exits >= MAX_EXITS
        if not convicted:
            return None
        return PermanentError("engine-crash", f"this order ends its model process each time it runs alone: {process_exit.message}")

    def _error_for_memory(self, process_exit: ProcessExit) -> TemporaryError | None:
        """A fresh process was the last rung."""
        if self.exits_alone and self.exits >= MAX_EXITS:
            return TemporaryError(f"not enough memory, even alone in a fresh process: {process_exit.message}", code="out-of-memory")
        return None


@dataclass
class CircuitBreaker:
    """Failures in a row decide. The first restart is immediate, then the wait doubles; from `threshold` on the breaker is open."""

    threshold: int
    initial_delay_seconds: float
    max_delay_seconds: float
    failures: int = 0

    @property
    def open(self) -> bool:
        return self.failures >= self.threshold

    def record_failure(self) -> None:
        self.failures += 1

    def record_success(self) -> None:
        """Something was finished: whatever fails from now on is a new story."""
        self.failures = 0

    def restart_delay_seconds(self) -> float:
        if self.open:
            return self.max_delay_seconds
        return 0.0 if self.failures <= 1 else min(self.initial_delay_seconds * 2 ** (self.failures - 2), self.max_delay_seconds)
