"""Labels are bounded, whatever an actor calls its faults; and what several steps share is counted once."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bus import metrics
from bus.metrics import Bounded, Engines, described, page, settled
from bus.outcome import Dead, Done, Dropped, Requeue, Retry
from contracts.fault import Fault
from contracts.wire import Result


def fault(code: str) -> Fault:
    return Fault(code=code, message="said", step="image", attempts=1)


def test_after_so_many_codes_a_new_one_is_another() -> None:
    codes = Bounded(most=3)

    assert [codes.of(code) for code in ("a", "b", "c", "d", "a")] == ["a", "b", "c", "other", "a"]


def test_what_is_no_word_of_a_machine_is_another() -> None:
    codes = Bounded()

    assert {codes.of(code) for code in ("Job 4711 failed", "", "x" * 65, "müde", "a\nb")} == {"other"}


def test_a_thousand_codes_make_no_thousand_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CODES", Bounded())
    for number in range(1000):
        settled("flood", Dead(fault(f"code-{number}")), attempt=1, seconds=0.1, waited=None)

    series = [sample for family in text_string_to_metric_families(page().decode()) for sample in family.samples]
    flood = [sample for sample in series if sample.name == "atelier_dead_letters_total" and sample.labels["step"] == "flood"]
    assert 2 <= len({sample.labels["code"] for sample in flood}) <= 101


def test_no_label_names_a_tenant_or_a_job() -> None:
    settled("labelled", Done(Result()), attempt=1, seconds=0.1, waited=0.2)
    metrics.answered("BREW", "/v1/jobs/{job_id}", 418, 0.1)

    families = list(text_string_to_metric_families(page().decode()))
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert labels <= {"step", "outcome", "code", "le", "part", "cause", "method", "route", "status"}
    assert {sample.labels.get("method") for family in families for sample in family.samples} & {"BREW"} == set()


def test_every_outcome_has_a_name_and_failures_their_code() -> None:
    said = [described(outcome) for outcome in (Done(Result()), Retry(1, fault("temporary")), Dead(fault("crash")), Requeue("engine"))]

    assert said == [("done", ""), ("retry", "temporary"), ("dead", "crash"), ("requeued", "")]
    assert described(Dropped(fault("cancelled"))) == ("dropped", "cancelled")


class Engine:
    def snapshot(self) -> dict[str, Any]:
        return {"engine_finished_total": 3}


def test_an_engine_that_two_steps_share_is_shown_once() -> None:
    engines, shared = Engines(), Engine()

    with engines.shown("judge", shared), engines.shown("validate", shared):
        assert [sample.labels for metric in engines.collect() for sample in metric.samples] == [{"step": "judge"}]
    assert list(engines.collect()) == []
