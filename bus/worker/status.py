"""The status of a worker for discovery: its steps, their deliveries in flight and done, and the health of its dependencies."""

import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from bus.actor import Actor
from bus.observability import metrics
from bus.observability.health import Health
from bus.worker.readiness import Readiness
from contracts.discovery import StepStatus, WorkerStatus

RATE_WINDOW_SECONDS = 60.0


class StatusReporter:
    """Builds the status of this worker. Rates are measured between reports."""

    def __init__(self, worker: str, actors: Sequence[Actor], readiness: Sequence[Readiness], health: Health) -> None:
        self._worker, self._health, self._started_at = worker, health, datetime.now(UTC)
        self._actors = list(zip(actors, readiness, strict=True))
        self._samples: deque[tuple[float, dict[str, int]]] = deque()

    async def report(self) -> WorkerStatus:
        dependencies = await self._health.check_all()
        done = {actor.step: _done_count(actor.step) for actor, _ in self._actors}
        rates = self._rates_per_minute(done)
        steps = [
            StepStatus(
                step=actor.step,
                queue=actor.queue,
                prefetch=actor.prefetch,
                in_hand=round(metrics.REGISTRY.get_sample_value("atelier_in_hand", {"step": actor.step}) or 0),
                done=done[actor.step],
                per_minute=rates.get(actor.step),
                reason=readiness.reason,
                since=readiness.since if readiness.reason else None,
            )
            for actor, readiness in self._actors
            if not actor.is_query
        ]
        engines = {step: dict(engine.snapshot()) for step, engine in metrics.ENGINES.by_step.items()}
        return WorkerStatus(worker=self._worker, began=self._started_at, steps=steps, parts=dict(dependencies), engines=engines)

    def _rates_per_minute(self, done_counts: dict[str, int]) -> dict[str, float]:
        """Deliveries per minute since the oldest sample of the window; empty at the first report."""
        now = time.monotonic()
        self._samples.append((now, done_counts))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW_SECONDS:
            self._samples.popleft()
        then, before = self._samples[0]
        if now - then < 1:
            return {}
        return {step: round((count - before.get(step, 0)) / (now - then) * 60, 1) for step, count in done_counts.items()}


def _done_count(step: str) -> int:
    """Deliveries of a step with any outcome, since the process started."""
    samples = (sample for family in metrics.DELIVERIES.collect() for sample in family.samples)
    return round(sum(sample.value for sample in samples if sample.name.endswith("_total") and sample.labels["step"] == step))
