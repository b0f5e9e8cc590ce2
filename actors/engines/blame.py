"""Whose fault is the death of a process? Suspects run again alone; who dies alone, and not for the first time, is the culprit. Pure."""

from dataclasses import dataclass

from actors.engines.protocol import Death
from bus.errors import PermanentError, TemporaryError

DEATHS = 2
"""Deaths, the last one alone, that convict an order whose process crashed or hung."""
KILLINGS = 3
"""The same when the process was killed with SIGKILL: that may be the work of a person, or of another process that took the memory."""


@dataclass
class Blame:
    """One order's record."""

    deaths: int = 0
    alone: int = 0
    killings_alone: int = 0

    def died(self, death: Death, *, alone: bool) -> None:
        self.deaths += 1
        self.alone += alone
        self.killings_alone += alone and death.cause == "killed"

    def verdict(self, death: Death) -> PermanentError | TemporaryError | None:
        """None: run it again, alone."""
        if death.cause == "memory":
            return self._of_memory(death)
        convicted = self.killings_alone >= KILLINGS if death.cause == "killed" else self.alone and self.deaths >= DEATHS
        if not convicted:
            return None
        return PermanentError("engine-crash", f"this order ends its model process each time it runs alone: {death.message}")

    def _of_memory(self, death: Death) -> TemporaryError | None:
        """A fresh process was the last rung."""
        if self.alone and self.deaths >= DEATHS:
            return TemporaryError(f"not enough memory, even alone in a fresh process: {death.message}", code="out-of-memory")
        return None
