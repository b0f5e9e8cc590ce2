"""Metrics of the executor: process exits, queue seconds, busy seconds, and the engine's own metrics."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from actors.engines.process.protocol import EngineMetrics, ProcessExit


@dataclass
class ExecutorStats:
    """`exits`: by cause. `queue_seconds`: of the last requests. `engine_metrics`: the last that the running process reported."""

    finished: int = 0
    cancelled: int = 0
    busy_seconds: float = 0.0
    exits: Counter[str] = field(default_factory=Counter)
    queue_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=512))
    engine_metrics: EngineMetrics = field(default_factory=lambda: EngineMetrics({}, {}))

    def add_busy_seconds(self, seconds: float) -> None:
        self.busy_seconds += seconds

    def record_exit(self, process_exit: ProcessExit) -> None:
        self.exits[process_exit.cause] += 1
        self.engine_metrics = EngineMetrics({}, {})

    def record_queue_seconds(self, seconds: float) -> None:
        self.queue_seconds.append(seconds)

    def set_engine_metrics(self, metrics: EngineMetrics) -> None:
        self.engine_metrics = metrics

    def snapshot(self) -> dict[str, Any]:
        """Values by metric name; counters end in `_total`."""
        queue_seconds = sorted(self.queue_seconds)
        return {
            "engine_finished_total": self.finished,
            "engine_cancelled_total": self.cancelled,
            "engine_busy_seconds_total": round(self.busy_seconds, 3),
            "engine_deaths_total": dict(self.exits),
            "engine_queue_seconds_median": round(queue_seconds[len(queue_seconds) // 2], 4) if queue_seconds else 0.0,
            **{f"engine_{name}_total": value for name, value in self.engine_metrics.counters.items()},
            **{f"engine_{name}": value for name, value in self.engine_metrics.gauges.items()},
        }
