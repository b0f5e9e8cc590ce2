"""The id of an inbox entry: stable for every copy of one message, another one for other content, tenant or job."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import ids
from bus.delivery import Delivery
from bus.persistence.entry_id import content_digest, entry_id, former_entry_ids
from bus.worker.outgoing import StepRun, build_completed, build_failed, build_progress, read_slip
from contracts.event import Progress
from contracts.fault import Fault
from contracts.slip import CompletedStep, LoopBack, Slip, SlipStep

NAMES = st.text("abcxyz", min_size=1, max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e25, 1e25) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
VARIABLES = st.dictionaries(NAMES, VALUES, max_size=4)
STEPS = st.builds(SlipStep, step=st.sampled_from(["upload", "watermark"]), arguments=VARIABLES, gate=st.none() | NAMES)
LOOPS = st.none() | st.builds(LoopBack, stops=st.lists(STEPS, min_size=1, max_size=2), times=st.integers(0, 3))
LOGS = st.lists(
    st.builds(CompletedStep, step=NAMES, worker=NAMES, started_at=st.datetimes(timezones=st.just(UTC)), seconds=st.floats(0, 100)),
    max_size=2,
)
SLIPS = st.builds(
    Slip,
    itinerary=st.lists(STEPS, min_size=1, max_size=3),
    variables=VARIABLES,
    log=LOGS,
    again=LOOPS,
    gate=st.none() | NAMES,
    reply_here=st.booleans(),
    on_failure=st.just(SlipStep(step="webhook", arguments={"kind": "failed"})),
    on_progress=st.just(SlipStep(step="webhook", arguments={"kind": "progress"})),
)
FIRST_RUN = datetime(2026, 1, 1, tzinfo=UTC)


def run_of(slip: Slip, seconds: float) -> StepRun:
    """A run that started `seconds` later, of a command whose slip was built again with another log."""
    body = json.dumps({"slip": slip.model_dump(mode="json")}).encode()
    delivery = Delivery(body, "atelier.image", "m-1", "job-1", tenant="acme")
    return StepRun(delivery, "image", f"worker-{seconds}", read_slip(body), FIRST_RUN + timedelta(seconds=seconds), seconds)


def other_order(value: Any) -> Any:
    """The value as a column of the type jsonb returns it: the keys in another order, whole numbers without an exponent, no U+0000."""
    match value:
        case dict():
            return {key: other_order(value[key]) for key in sorted(value, key=lambda key: (len(key), key), reverse=True)}
        case list():
            return [other_order(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case str():
            return value.replace("\0", "\ufffd")
    return value


@pytest.mark.parametrize("secret", [None, "s" * 32])
@given(slip=SLIPS, log=LOGS, result=VARIABLES)
def test_repeated_run_publishes_commands_with_same_entry_ids(secret: str | None, slip: Slip, log: list[CompletedStep], result: Any) -> None:
    """The outcome is built again from the stored result, with other times in the log and another worker."""
    ids.use_secret(secret)
    again = slip.model_copy(update={"log": log})
    first = build_completed(run_of(slip, 0), result)
    second = build_completed(run_of(again, 5), other_order(result))
    assert entries_of(first) == entries_of(second)


@pytest.mark.parametrize("secret", [None, "s" * 32])
@given(slip=SLIPS, log=LOGS)
def test_repeated_failure_and_progress_have_same_entry_ids(secret: str | None, slip: Slip, log: list[CompletedStep]) -> None:
    ids.use_secret(secret)
    runs = (run_of(slip, 0), run_of(slip.model_copy(update={"log": log}), 5))
    faults = [Fault(code="timeout", message=f"after {run.seconds} s", step="image") for run in runs]
    progress = [Progress(current_step=1, total_steps=2, progress_percent=50, estimated_seconds=int(run.seconds)) for run in runs]
    assert entries_of(build_failed(runs[0], faults[0])) == entries_of(build_failed(runs[1], faults[1])) != []
    assert entries_of(build_progress(runs[0], progress[0])) == entries_of(build_progress(runs[1], progress[1])) != []


def entries_of(messages: list[Any]) -> list[str]:
    """The entries of the commands among the messages, as their consumer computes them."""
    commands = [message for message in messages if message.exchange == "atelier.commands"]
    return [
        Delivery(
            message.body,
            "q",
            message.message_id,
            message.job_id,
            tenant=message.headers.get("atelier-tenant"),
            detached=message.headers.get("atelier-aside") is True,
            former_id=message.headers.get("atelier-former-id"),
        ).entry_id
        for message in commands
    ]


IDENTITIES = st.tuples(st.text(max_size=4), st.none() | st.text(max_size=4), st.text(max_size=4), VARIABLES)


@given(one=IDENTITIES, two=IDENTITIES)
def test_other_id_tenant_job_or_content_is_another_entry(one: Any, two: Any) -> None:
    def entry(message_id: str, tenant: str | None, job_id: str, fields: dict[str, Any]) -> str:
        return entry_id(message_id, None, tenant, job_id, content_digest(canonical(fields)))

    def canonical(fields: dict[str, Any]) -> bytes:
        return json.dumps(fields, sort_keys=True).encode()

    same = (one[0], one[1] or "", one[2], canonical(one[3])) == (two[0], two[1] or "", two[2], canonical(two[3]))
    assert (entry(*one) == entry(*two)) is same


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"fault": {"code": "a"}}, {"fault": {"code": "b"}}),
        ({"progress": {"progress_percent": 1}}, {"progress": {"progress_percent": 2}}),
        ({"slip": {"variables": {"x": 1}, "log": []}}, {"slip": {"variables": {"x": 2}, "log": []}}),
        ({"log": [1], "slip": {}}, {"log": [2], "slip": {}}),
        ({"slip": {"variables": {"slip": {"log": [1]}}}}, {"slip": {"variables": {"slip": {"log": [2]}}}}),
        ({"slip": [1]}, {"slip": [2]}),
    ],
)
def test_only_log_of_own_slip_is_left_out(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert content_digest(json.dumps(one).encode()) != content_digest(json.dumps(two).encode())


@pytest.mark.parametrize("body", [b"", b'"slip"', b'{"slip": nope', b'\xff\xfe"slip"', b'{"slip":' + b"[" * 100_000, b'["slip"]'])
def test_body_of_any_form_has_digest(body: bytes) -> None:
    assert len(content_digest(body, detached=True)) == 64


def test_id_in_the_form_of_an_entry_names_no_former_one() -> None:
    assert former_entry_ids("m#0123", "f#0123") == []
    assert sorted(former_entry_ids("m", "f")) == ["f", "m"]
    assert former_entry_ids("m", None) == ["m"]
