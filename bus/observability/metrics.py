"""What this process counts, for Prometheus. Labels are bounded: steps and outcomes are ours, codes are kept to a hundred.

No tenant, job or message is a label. Names here are used by the rules and the dashboard in `ops/observability/`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bus.outcome import DeadLettered, Done, Dropped, Outcome, Requeue, Retry

CONTENT_TYPE = CONTENT_TYPE_LATEST
REGISTRY = CollectorRegistry()
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0)

DELIVERIES = Counter("atelier_orders", "Deliveries by what became of them.", ["step", "outcome", "code"], registry=REGISTRY)
STEP_SECONDS = Histogram("atelier_step_seconds", "One delivery, from arrival to ack.", ["step"], buckets=SECONDS_BUCKETS, registry=REGISTRY)
WAIT_SECONDS = Histogram("atelier_queue_wait_seconds", "From publish to arrival.", ["step"], buckets=SECONDS_BUCKETS, registry=REGISTRY)
ATTEMPTS = Histogram("atelier_attempts", "Which attempt a delivery was.", ["step"], buckets=(1, 2, 3, 4, 6, 10), registry=REGISTRY)
DEAD_LETTERS = Counter("atelier_dead_letters", "Buried messages.", ["step", "code"], registry=REGISTRY)
IN_FLIGHT = Gauge("atelier_in_hand", "Deliveries at work.", ["step"], registry=REGISTRY)
PART_READY = Gauge("atelier_part_ready", "1: this part of the process answers.", ["part"], registry=REGISTRY)
READY = Gauge("atelier_ready", "1: the process can work.", registry=REGISTRY)
HTTP_REQUESTS = Counter("atelier_gateway_requests", "HTTP requests.", ["method", "route", "status"], registry=REGISTRY)
HTTP_REQUEST_SECONDS = Histogram("atelier_gateway_request_seconds", "One request.", ["route"], buckets=SECONDS_BUCKETS, registry=REGISTRY)
ProcessCollector(registry=REGISTRY)

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_LABEL = "other"


class LabelLimiter:
    """The first hundred words of a kind; everything after them, or that is no word of a machine, is `other`."""

    def __init__(self, max_values: int = 100) -> None:
        self._max_values, self._seen = max_values, set[str]()

    def limit(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._max_values or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", value):
            return OTHER_LABEL
        self._seen.add(value)
        return value


CODE_LABELS = LabelLimiter()


class MetricsSource(Protocol):
    """An engine that counts. Names that end in `_total` only grow; a mapping is counted by cause."""

    def snapshot(self) -> Mapping[str, Any]: ...


class EngineCollector(Collector):
    """The engines of this process, read when somebody asks. One that several steps share is shown once, under the first of them."""

    def __init__(self) -> None:
        self.by_step: dict[str, MetricsSource] = {}

    @contextmanager
    def register(self, step: str, engine: MetricsSource) -> Iterator[None]:
        if any(engine is known for known in self.by_step.values()):
            yield
            return
        self.by_step[step] = engine
        try:
            yield
        finally:
            self.by_step.pop(step, None)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for step, engine in list(self.by_step.items()):
            for name, value in engine.snapshot().items():
                add_sample(families, f"atelier_{name}", step, value)
        return iter(families.values())


def add_sample(families: dict[str, Metric], name: str, step: str, value: Any) -> None:
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    if isinstance(value, Mapping):
        family = families.setdefault(name, kind(name, "By cause.", labels=["step", "cause"]))
        for cause, count in value.items():
            family.add_metric([step, str(cause)], float(count))  # type: ignore[attr-defined]
    else:
        family = families.setdefault(name, kind(name, "Of the model process.", labels=["step"]))
        family.add_metric([step], float(value))  # type: ignore[attr-defined]


ENGINES = EngineCollector()
REGISTRY.register(ENGINES)


def render() -> bytes:
    """Everything, in the text format of Prometheus."""
    return generate_latest(REGISTRY)


@cache
def labelled_child(family: Any, *labels: str) -> Any:
    """A family's child, looked up once: labels are bounded."""
    return family.labels(*labels)


def record_delivery(step: str, outcome: Outcome, *, attempt: int, seconds: float, queued_seconds: float | None) -> None:
    """One delivery is over for this process."""
    name, code = outcome_labels(outcome)
    labelled_child(DELIVERIES, step, name, code).inc()
    labelled_child(STEP_SECONDS, step).observe(seconds)
    labelled_child(ATTEMPTS, step).observe(attempt)
    if queued_seconds is not None and attempt == 1:
        labelled_child(WAIT_SECONDS, step).observe(queued_seconds)
    if isinstance(outcome, DeadLettered):
        DEAD_LETTERS.labels(step, code).inc()


def record_translation(adapter: str, code: str, seconds: float) -> None:
    """A foreign message became an order, or was buried under a code."""
    DELIVERIES.labels(adapter, "dead" if code else "done", CODE_LABELS.limit(code) if code else "").inc()
    STEP_SECONDS.labels(adapter).observe(seconds)
    if code:
        DEAD_LETTERS.labels(adapter, CODE_LABELS.limit(code)).inc()


def outcome_labels(outcome: Outcome) -> tuple[str, str]:
    """An outcome and its code as labels."""
    match outcome:
        case Done():
            return "done", ""
        case Retry(_, fault):
            return "retry", CODE_LABELS.limit(fault.code)
        case DeadLettered(fault):
            return "dead", CODE_LABELS.limit(fault.code)
        case Dropped(fault):
            return "dropped", CODE_LABELS.limit(fault.code)
        case Requeue():
            return "requeued", ""


def record_health(parts: Mapping[str, str | None], *, started: bool) -> None:
    for part, reason in parts.items():
        PART_READY.labels(part).set(not reason)
    READY.set(started and not any(parts.values()))


def record_request(method: str, route: str, status: int, seconds: float) -> None:
    """`route` is a pattern such as /v1/jobs/{job_id}, never a path that somebody typed."""
    labelled_child(HTTP_REQUESTS, method if method in HTTP_METHODS else OTHER_LABEL, route, str(status)).inc()
    labelled_child(HTTP_REQUEST_SECONDS, route).observe(seconds)
