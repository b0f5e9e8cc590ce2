"""The Prometheus metrics of this process. Labels are bounded: steps and outcomes are fixed, the number of codes is limited.

No tenant, job or message is a label. The rules and the dashboard in `ops/observability/` use the names of these metrics.
"""

import math
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

DELIVERIES = Counter("atelier_deliveries", "Deliveries by outcome.", ["step", "outcome", "code"], registry=REGISTRY)
STEP_SECONDS = Histogram("atelier_step_seconds", "One delivery, from arrival to ack.", ["step"], buckets=SECONDS_BUCKETS, registry=REGISTRY)
WAIT_SECONDS = Histogram("atelier_queue_wait_seconds", "From publish to arrival.", ["step"], buckets=SECONDS_BUCKETS, registry=REGISTRY)
ATTEMPTS = Histogram("atelier_attempts", "The attempt number of each delivery.", ["step"], buckets=(1, 2, 3, 4, 6, 10), registry=REGISTRY)
DEVICE_SECONDS = Counter("atelier_device_seconds", "Busy time of the device, by the step that it worked for.", ["step"], registry=REGISTRY)
DEAD_LETTERS = Counter("atelier_dead_letters", "Dead-lettered messages.", ["step", "code"], registry=REGISTRY)
UNSIGNED_MESSAGES = Counter("atelier_signatures_refused", "Messages dropped for their signature.", ["kind"], registry=REGISTRY)
IN_FLIGHT = Gauge("atelier_in_hand", "Deliveries in flight.", ["step"], registry=REGISTRY)
QUEUE_MESSAGES = Gauge("atelier_queue_messages", "Messages that wait in a queue that this process consumes.", ["queue"], registry=REGISTRY)
PART_READY = Gauge("atelier_part_ready", "1: this dependency responds.", ["part"], registry=REGISTRY)
READY = Gauge("atelier_ready", "1: the process is ready.", registry=REGISTRY)
HTTP_REQUESTS = Counter("atelier_gateway_requests", "HTTP requests.", ["method", "route", "status"], registry=REGISTRY)
HTTP_REQUEST_SECONDS = Histogram("atelier_gateway_request_seconds", "One request.", ["route"], buckets=SECONDS_BUCKETS, registry=REGISTRY)
ProcessCollector(registry=REGISTRY)

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_LABEL = "other"


class LabelLimiter:
    """Passes the first `max_values` different values; later ones, and those that are no machine-readable word, become `other`."""

    def __init__(self, max_values: int = 100) -> None:
        self._max_values, self._accepted = max_values, set[str]()

    def limit(self, value: str) -> str:
        if value in self._accepted:
            return value
        if len(self._accepted) >= self._max_values or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", value):
            return OTHER_LABEL
        self._accepted.add(value)
        return value


CODE_LABELS = LabelLimiter()


class MetricsSource(Protocol):
    """An engine with metrics. Names that end in `_total` are counters, others gauges; a mapping has one value per cause."""

    def snapshot(self) -> Mapping[str, Any]: ...


class EngineCollector(Collector):
    """The metrics of this process's engines, read on each scrape. An engine that several steps share appears once, under the first step."""

    def __init__(self) -> None:
        self.by_step: dict[str, MetricsSource] = {}

    @contextmanager
    def register(self, step: str, engine: MetricsSource) -> Iterator[None]:
        if any(engine is registered for registered in self.by_step.values()):
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


class RenamedCounter(Collector):
    """Exports a counter a second time, under the name it had before, for one release."""

    def __init__(self, counter: Counter, former_name: str) -> None:
        self._counter, self._former_name = counter, former_name

    def collect(self) -> Iterator[Metric]:
        for family in self._counter.collect():
            former = Metric(self._former_name, f"Former name of {family.name}. {family.documentation}", family.type)
            for sample in family.samples:
                suffix = sample.name.removeprefix(family.name)
                former.add_sample(self._former_name + suffix, sample.labels, sample.value, sample.timestamp, sample.exemplar)
            yield former


ENGINES = EngineCollector()
REGISTRY.register(ENGINES)
REGISTRY.register(RenamedCounter(DELIVERIES, "atelier_orders"))


def render() -> bytes:
    """All metrics in the text format of Prometheus."""
    return generate_latest(REGISTRY)


@cache
def labelled_child(family: Any, *labels: str) -> Any:
    """A family's child, cached: the number of label values is bounded."""
    return family.labels(*labels)


def record_delivery(step: str, outcome: Outcome, *, attempt: int, seconds: float, queued_seconds: float | None) -> None:
    """Count a delivery that has been acknowledged."""
    name, code = outcome_labels(outcome)
    labelled_child(DELIVERIES, step, name, code).inc()
    labelled_child(STEP_SECONDS, step).observe(seconds)
    labelled_child(ATTEMPTS, step).observe(attempt)
    if queued_seconds is not None and attempt == 1:
        labelled_child(WAIT_SECONDS, step).observe(queued_seconds)
    if isinstance(outcome, DeadLettered):
        DEAD_LETTERS.labels(step, code).inc()


def record_device_seconds(step: str, seconds: float) -> None:
    """Count busy time of a model process, also for requests that fail or are cancelled."""
    labelled_child(DEVICE_SECONDS, step).inc(seconds)


def record_translation(adapter: str, code: str, seconds: float) -> None:
    """Count a foreign message: translated into a command, or dead-lettered under `code`."""
    DELIVERIES.labels(adapter, "dead" if code else "done", CODE_LABELS.limit(code) if code else "").inc()
    STEP_SECONDS.labels(adapter).observe(seconds)
    if code:
        DEAD_LETTERS.labels(adapter, CODE_LABELS.limit(code)).inc()


def outcome_labels(outcome: Outcome) -> tuple[str, str]:
    """The labels `outcome` and `code`."""
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


def record_queue_length(queue: str, ready: int | None) -> None:
    """`ready`: how many messages wait; None for a queue that does not exist. A process consumes few queues, so the labels are bounded."""
    labelled_child(QUEUE_MESSAGES, queue).set(math.nan if ready is None else ready)


def record_health(results: Mapping[str, str | None], *, started: bool) -> None:
    """`results`: why each check fails, None for one that passes."""
    for name, reason in results.items():
        PART_READY.labels(name).set(not reason)
    READY.set(started and not any(results.values()))


def record_request(method: str, route: str, status: int, seconds: float) -> None:
    """`route` is a pattern such as /v1/jobs/{job_id}, never a requested path."""
    labelled_child(HTTP_REQUESTS, method if method in HTTP_METHODS else OTHER_LABEL, route, str(status)).inc()
    labelled_child(HTTP_REQUEST_SECONDS, route).observe(seconds)
