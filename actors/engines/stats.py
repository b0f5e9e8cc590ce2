"""What the executor counts: deaths, waits, busy seconds, and what the engine measures of itself."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from actors.engines.protocol import Death, Gauges


@dataclass
class Stats:
    finished: int = 0
    cancelled: int = 0
    busy_seconds: float = 0.0
    deaths: Counter[str] = field(default_factory=Counter)
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=512))
    gauges: Gauges = field(default_factory=lambda: Gauges({}, {}))

    def busy(self, seconds: float) -> None:
        self.busy_seconds += seconds

    def died(self, death: Death) -> None:
        self.deaths[death.cause] += 1
        self.gauges = Gauges({}, {})

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def measured(self, gauges: Gauges) -> None:
        self.gauges = gauges

    def snapshot(self) -> dict[str, Any]:
        """Names as metrics have them; counters end in `_total`."""
        waits = sorted(self.waits)
        return {
            "engine_finished_total": self.finished,
            "engine_cancelled_total": self.cancelled,
            "engine_busy_seconds_total": round(self.busy_seconds, 3),
            "engine_deaths_total": dict(self.deaths),
            "engine_queue_seconds_median": round(waits[len(waits) // 2], 4) if waits else 0.0,
            **{f"engine_{name}_total": value for name, value in self.gauges.counters.items()},
            **{f"engine_{name}": value for name, value in self.gauges.levels.items()},
        }
