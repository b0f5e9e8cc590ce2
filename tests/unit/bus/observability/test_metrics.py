"""Metrics: bounded labels, shared engines, and names that are exported twice."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bus.observability import metrics
from bus.observability.metrics import EngineCollector, LabelLimiter, outcome_labels, record_delivery, render
from bus.outcome import DeadLettered, Done, Dropped, Requeue, Retry
from contracts.fault import Fault
from contracts.wire import Result


def fault(code: str) -> Fault:
    return Fault(code=code, message="text", step="image", attempts=1)


def test_codes_over_limit_become_other() -> None:
    codes = LabelLimiter(max_values=3)

    assert [codes.limit(code) for code in ("a", "b", "c", "d", "a")] == ["a", "b", "c", "other", "a"]


def test_malformed_codes_become_other() -> None:
    codes = LabelLimiter()

    assert {codes.limit(code) for code in ("Job 4711 failed", "", "x" * 65, "müde", "a\nb")} == {"other"}


def test_label_cardinality_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CODE_LABELS", LabelLimiter())
    for number in range(1000):
        record_delivery("flood", DeadLettered(fault(f"code-{number}")), attempt=1, seconds=0.1, queued_seconds=None)

    series = [sample for family in text_string_to_metric_families(render().decode()) for sample in family.samples]
    samples = [sample for sample in series if sample.name == "atelier_dead_letters_total" and sample.labels["step"] == "flood"]
    assert 2 <= len({sample.labels["code"] for sample in samples}) <= 101


def test_no_label_is_a_tenant_or_a_job() -> None:
    record_delivery("labelled", Done(Result()), attempt=1, seconds=0.1, queued_seconds=0.2)
    metrics.record_request("BREW", "/v1/jobs/{job_id}", 418, 0.1)
    metrics.UNSIGNED_MESSAGES.labels("command").inc()
    metrics.record_queue_length("atelier.labelled", 1)

    families = list(text_string_to_metric_families(render().decode()))
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert labels <= {"step", "outcome", "code", "le", "part", "cause", "method", "route", "status", "kind", "queue"}
    assert {sample.labels.get("method") for family in families for sample in family.samples} & {"BREW"} == set()


def test_every_outcome_has_labels_and_failures_their_code() -> None:
    labels = [
        outcome_labels(outcome)
        for outcome in (Done(Result()), Retry(1, fault("temporary")), DeadLettered(fault("crash")), Requeue("engine"))
    ]

    assert labels == [("done", ""), ("retry", "temporary"), ("dead", "crash"), ("requeued", "")]
    assert outcome_labels(Dropped(fault("cancelled"))) == ("dropped", "cancelled")


class Engine:
    def snapshot(self) -> dict[str, Any]:
        return {"engine_finished_total": 3}


def test_shared_engine_is_exported_once() -> None:
    engines, shared = EngineCollector(), Engine()

    with engines.register("judge", shared), engines.register("validate", shared):
        assert [sample.labels for metric in engines.collect() for sample in metric.samples] == [{"step": "judge"}]
    assert list(engines.collect()) == []


def test_deliveries_are_exported_under_former_name_too() -> None:
    record_delivery("renamed", Done(Result()), attempt=1, seconds=0.1, queued_seconds=None)

    families = {family.name: family for family in text_string_to_metric_families(render().decode())}
    values = {
        name: {tuple(sorted(sample.labels.items())): sample.value for sample in families[name].samples if sample.name == f"{name}_total"}
        for name in ("atelier_deliveries", "atelier_orders")
    }
    assert values["atelier_deliveries"] == values["atelier_orders"]
    assert values["atelier_orders"][("code", ""), ("outcome", "done"), ("step", "renamed")] == 1


def test_length_of_a_queue_is_a_gauge_and_not_a_number_when_the_queue_is_gone() -> None:
    metrics.record_queue_length("test-queue", 3)
    assert 'atelier_queue_messages{queue="test-queue"} 3.0' in metrics.render().decode()
    metrics.record_queue_length("test-queue", None)
    assert 'atelier_queue_messages{queue="test-queue"} NaN' in metrics.render().decode()
