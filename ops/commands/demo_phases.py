"""Where the time of a demo goes: phases that follow each other, so that their seconds add up to the total."""

import time
from collections.abc import Mapping

SHORTEST_SHOWN_SECONDS = 0.05


class PhaseClock:
    """The first phase, `start`, is the processor time of this process so far: Python and the imports."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds = {"start": time.process_time()}

    def finish(self, phase: str) -> None:
        """What has passed since the last call belongs to `phase`; one that comes twice is added up."""
        now = time.monotonic()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, in the order in which they came, rounded to milliseconds."""
        return {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}

    @property
    def total_seconds(self) -> float:
        """The sum of the rounded phases."""
        return round(sum(self.seconds.values()), 3)


def format_phases(seconds: Mapping[str, float]) -> str:
    """One line, such as `services 2.1 s · image 2.3 s`. Phases that round to nothing are left out."""
    return " · ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items() if value >= SHORTEST_SHOWN_SECONDS)
