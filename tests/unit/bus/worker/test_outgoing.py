"""The messages of each outcome."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bus.amqp.messages import OutboundMessage
from bus.delivery import Delivery, Origin
from bus.outcome import DeadLettered, Dropped, Requeue, Retry
from bus.worker.outgoing import StepRun, build_completed, build_progress, messages_for_outcome, read_slip
from contracts import broker_names
from contracts.event import Progress
from contracts.fault import Fault
from contracts.slip import Slip, SlipStep
from contracts.wire import Header

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAULT = Fault(code="lora-missing", message="no such weights", step="image", attempts=2)


def make_step_run(slip: Slip | None = None, **delivery: Any) -> StepRun:
    fields: dict[str, Any] = {
        "body": b"{}",
        "queue": "atelier.image",
        "message_id": "m-1",
        "job_id": "job-1",
        "origin": Origin("atelier.image", "atelier.commands", "image"),
        "tenant": "acme",
    }
    return StepRun(Delivery(**fields | delivery), "image", "worker-1", slip, NOW)


def routing_keys(messages: list[OutboundMessage]) -> list[tuple[str, str]]:
    return [(message.exchange, message.routing_key) for message in messages]


def test_command_without_slip_ends_job() -> None:
    assert routing_keys(build_completed(make_step_run(), {})) == [
        (broker_names.EVENTS_EXCHANGE, "image.completed.job-1"),
        (broker_names.EVENTS_EXCHANGE, "job.completed.job-1"),
    ]


def test_intermediate_step_publishes_next_command() -> None:
    messages = build_completed(make_step_run(Slip(itinerary=[SlipStep(step="upload")])), {"images": []})
    assert routing_keys(messages) == [(broker_names.EVENTS_EXCHANGE, "image.completed.job-1"), (broker_names.COMMANDS_EXCHANGE, "upload")]
    assert messages[1].mandatory
    assert (messages[1].job_id, messages[1].headers[Header.TENANT], messages[1].headers[Header.CAUSATION]) == ("job-1", "acme", "m-1")


def test_redelivery_builds_same_message_ids() -> None:
    slip = Slip(itinerary=[SlipStep(step="upload")])
    assert [message.message_id for message in build_completed(make_step_run(slip), {})] == [
        message.message_id for message in build_completed(make_step_run(slip), {})
    ]
    assert len({message.message_id for message in build_completed(make_step_run(slip), {})}) == 2


def test_reply_is_sent_after_last_step() -> None:
    slip = Slip(itinerary=[SlipStep(step="upload")])
    messages = build_completed(make_step_run(slip, reply_to="q"), {})
    assert [message.routing_key for message in messages] == ["image.completed.job-1", "upload"]
    assert messages[1].reply_to == "q"
    assert ("", "q") in routing_keys(build_completed(make_step_run(Slip(), reply_to="q"), {}))


def test_reply_point_replies_once_and_job_continues() -> None:
    messages = build_completed(make_step_run(Slip(itinerary=[SlipStep(step="upload")], reply_here=True), reply_to="q"), {})
    assert [message.routing_key for message in messages] == ["image.completed.job-1", "q", "upload"]
    assert messages[2].reply_to is None


def refusal_fault(step: str, arguments: dict[str, Any]) -> Any:
    slip = Slip(gate="allowed", on_refusal=SlipStep(step="webhook", arguments=arguments))
    messages = build_completed(replace(make_step_run(slip), step=step), {"allowed": False})
    (command,) = [message for message in messages if message.routing_key == "webhook"]
    return json.loads(command.body).get("fault")


def test_refusal_names_the_step_whose_condition_was_not_met() -> None:
    """A fault of the slip is that of one step; the condition of another one is not reported under its name."""
    fault = {"code": "refused", "message": "No picture suited the advertisement.", "step": "validate"}
    assert refusal_fault("validate", {"fault": fault}) == fault
    assert refusal_fault("moderate", {"fault": fault}) == {
        "code": "refused",
        "message": "The condition 'allowed' of the step moderate is not met.",
        "step": "moderate",
        "attempts": 1,
    }
    assert refusal_fault("moderate", {"kind": "failed"}) is None


def test_retry_is_copy_with_next_attempt_for_failing_queue() -> None:
    (retry,) = messages_for_outcome(make_step_run(attempt=2, reply_to="q"), Retry(30.0, FAULT), now=NOW)
    assert (retry.exchange, retry.routing_key, retry.message_id, retry.reply_to) == (
        "atelier.retry.30000ms",
        "atelier.image",
        "m-1",
        "q",
    )
    assert retry.headers[Header.ATTEMPT] == 3
    assert retry.headers[Header.ORIGIN_EXCHANGE] == "atelier.commands"
    assert not any(name.startswith("x-") for name in retry.headers)


def test_dead_letter_keeps_message_and_emits_failed_event() -> None:
    slip = Slip(variables={"generation_id": 7}, on_failure=SlipStep(step="webhook", arguments={"kind": "failed"}))
    messages = messages_for_outcome(make_step_run(slip, reply_to="q", body=b"as it came"), DeadLettered(FAULT, "stack" * 9999), now=NOW)
    assert [message.routing_key for message in messages] == ["atelier.dead.image", "image.failed.job-1", "job.failed.job-1", "q", "webhook"]
    assert messages[0].body == b"as it came"
    assert messages[0].headers[Header.FAULT_CODE] == "lora-missing"
    assert len(messages[0].headers[Header.EXCEPTION_STACK]) == 4000
    webhook = json.loads(messages[4].body)
    assert (webhook["kind"], webhook["generation_id"], webhook["fault"]["code"]) == ("failed", 7, "lora-missing")


def test_failed_webhook_step_triggers_no_webhook() -> None:
    """A backend that cannot be reached about `complete` must not receive `failed`: the picture exists, and a replay will report it."""
    slip = Slip(on_failure=SlipStep(step="image"))
    assert "image" not in [message.routing_key for message in messages_for_outcome(make_step_run(slip), DeadLettered(FAULT), now=NOW)]


def test_cancelled_job_emits_cancelled_event_without_dead_letter() -> None:
    cancelled = FAULT.model_copy(update={"code": "cancelled"})
    assert [message.routing_key for message in messages_for_outcome(make_step_run(), Dropped(cancelled), now=NOW)] == [
        "image.cancelled.job-1",
        "job.cancelled.job-1",
    ]


def test_requeue_publishes_nothing() -> None:
    assert messages_for_outcome(make_step_run(), Requeue("engine died"), now=NOW) == []


def test_progress_is_sent_as_event_and_webhook() -> None:
    slip = Slip(variables={"generation_id": 7}, on_progress=SlipStep(step="webhook", arguments={"kind": "progress"}))
    messages = build_progress(make_step_run(slip), Progress(current_step=2, total_steps=8, progress_percent=25))
    assert [message.routing_key for message in messages] == ["image.progress.job-1", "webhook"]
    assert json.loads(messages[1].body) == {
        "generation_id": 7,
        "kind": "progress",
        "progress": {"current_step": 2, "total_steps": 8, "progress_percent": 25, "estimated_seconds": 0},
    }


def test_slip_of_invalid_command_is_read() -> None:
    assert read_slip(b'{"prompt": 5, "slip": {"variables": {"a": 1}}}') == Slip(variables={"a": 1})
    for body in (b"{", b"[]", b"5", b'{"slip": 5}', b"\xff", b"[" * 100_000):
        assert read_slip(body) is None


def test_detached_step_does_not_end_job() -> None:
    """A progress webhook that is done, or dead-lettered, does not end its job; its retry stays detached."""
    assert [message.routing_key for message in build_completed(make_step_run(detached=True), {})] == ["image.completed.job-1"]
    assert [message.routing_key for message in messages_for_outcome(make_step_run(detached=True), DeadLettered(FAULT), now=NOW)] == [
        "atelier.dead.image",
        "image.failed.job-1",
    ]
    (retry,) = messages_for_outcome(make_step_run(detached=True), Retry(2.0, FAULT), now=NOW)
    assert retry.headers[Header.DETACHED] is True
    slip = Slip(on_progress=SlipStep(step="webhook"))
    assert (
        build_progress(make_step_run(slip), Progress(current_step=1, total_steps=1, progress_percent=100))[1].headers[Header.DETACHED]
        is True
    )


def test_on_failure_command_is_detached_without_deadline() -> None:
    """A webhook that the end of its job interrupted is followed by one about that end; one that the backend refused is not."""
    slip = Slip(on_failure=SlipStep(step="image"))
    for code, count in (("cancelled", 1), ("deadline-exceeded", 1), ("webhook-refused", 0)):
        messages = messages_for_outcome(make_step_run(slip, deadline=NOW), Dropped(FAULT.model_copy(update={"code": code})), now=NOW)
        commands = [message for message in messages if message.exchange == broker_names.COMMANDS_EXCHANGE]
        assert len(commands) == count
        assert all(Header.DEADLINE not in message.headers and message.headers[Header.DETACHED] for message in commands)
