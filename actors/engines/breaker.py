"""How long to wait before an engine is started again, and when to stop trying for a while. Pure: the clock is the caller's."""

from dataclasses import dataclass


@dataclass
class Breaker:
    """Failures in a row decide. The first restart is immediate, then the wait doubles; from `threshold` on the breaker is open."""

    threshold: int
    first_seconds: float
    longest_seconds: float
    failures: int = 0

    @property
    def open(self) -> bool:
        return self.failures >= self.threshold

    def failed(self) -> None:
        self.failures += 1

    def worked(self) -> None:
        """Something was finished: whatever fails from now on is a new story."""
        self.failures = 0

    def wait_seconds(self) -> float:
        if self.open:
            return self.longest_seconds
        return 0.0 if self.failures <= 1 else min(self.first_seconds * 2 ** (self.failures - 2), self.longest_seconds)
