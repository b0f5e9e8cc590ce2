"""What is published for each outcome."""

import json
from datetime import UTC, datetime
from typing import Any

from bus.delivery import Delivery, Origin
from bus.letters import Letter, Work, done, follow, progress, slip_of
from bus.outcome import Dead, Dropped, Requeue, Retry
from contracts import channels
from contracts.event import Progress
from contracts.fault import Fault
from contracts.slip import Slip, Stop
from contracts.wire import Header

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAULT = Fault(code="lora-missing", message="no such weights", step="image", attempts=2)


def work(slip: Slip | None = None, **delivery: Any) -> Work:
    facts: dict[str, Any] = {
        "body": b"{}",
        "queue": "atelier.image",
        "message_id": "m-1",
        "job_id": "job-1",
        "origin": Origin("atelier.image", "atelier.commands", "image"),
        "tenant": "acme",
    }
    return Work(Delivery(**facts | delivery), "image", "worker-1", slip, NOW)


def keys(letters: list[Letter]) -> list[tuple[str, str]]:
    return [(letter.exchange, letter.key) for letter in letters]


def test_a_lone_command_ends_the_job() -> None:
    assert keys(done(work(), {})) == [(channels.EVENTS, "image.completed.job-1"), (channels.EVENTS, "job.completed.job-1")]


def test_a_stop_on_the_way_sends_the_next_command_and_does_not_end_the_job() -> None:
    letters = done(work(Slip(itinerary=[Stop(step="upload")])), {"images": []})
    assert keys(letters) == [(channels.EVENTS, "image.completed.job-1"), (channels.COMMANDS, "upload")]
    assert letters[1].must_route
    assert (letters[1].job_id, letters[1].headers[Header.TENANT], letters[1].headers[Header.CAUSATION]) == ("job-1", "acme", "m-1")


def test_the_same_delivery_again_writes_the_same_message_ids() -> None:
    slip = Slip(itinerary=[Stop(step="upload")])
    assert [letter.message_id for letter in done(work(slip), {})] == [letter.message_id for letter in done(work(slip), {})]
    assert len({letter.message_id for letter in done(work(slip), {})}) == 2


def test_whoever_asked_is_answered_at_the_end_of_the_way() -> None:
    slip = Slip(itinerary=[Stop(step="upload")])
    on_the_way = done(work(slip, reply_to="q"), {})
    assert [letter.key for letter in on_the_way] == ["image.completed.job-1", "upload"]
    assert on_the_way[1].reply_to == "q"
    assert ("", "q") in keys(done(work(Slip(), reply_to="q"), {}))


def test_a_reply_point_answers_once_and_the_job_goes_on() -> None:
    letters = done(work(Slip(itinerary=[Stop(step="upload")], reply_here=True), reply_to="q"), {})
    assert [letter.key for letter in letters] == ["image.completed.job-1", "q", "upload"]
    assert letters[2].reply_to is None


def test_a_retry_is_a_copy_with_one_more_attempt_for_the_failing_queue() -> None:
    (letter,) = follow(work(attempt=2, reply_to="q"), Retry(30.0, FAULT), now=NOW)
    assert (letter.exchange, letter.key, letter.message_id, letter.reply_to) == ("atelier.retry.30000ms", "atelier.image", "m-1", "q")
    assert letter.headers[Header.ATTEMPT] == 3
    assert letter.headers[Header.ORIGIN_EXCHANGE] == "atelier.commands"
    assert not any(name.startswith("x-") for name in letter.headers)


def test_a_burial_keeps_the_message_and_tells_everyone() -> None:
    slip = Slip(variables={"generation_id": 7}, on_failure=Stop(step="webhook", arguments={"kind": "failed"}))
    letters = follow(work(slip, reply_to="q", body=b"as it came"), Dead(FAULT, "stack" * 9999), now=NOW)
    assert [letter.key for letter in letters] == ["atelier.dead.image", "image.failed.job-1", "job.failed.job-1", "q", "webhook"]
    assert letters[0].body == b"as it came"
    assert letters[0].headers[Header.FAULT_CODE] == "lora-missing"
    assert len(letters[0].headers[Header.EXCEPTION_STACK]) == 4000
    told = json.loads(letters[4].body)
    assert (told["kind"], told["generation_id"], told["fault"]["code"]) == ("failed", 7, "lora-missing")


def test_a_failing_webhook_does_not_report_its_own_failure() -> None:
    """The backend that cannot be reached about `complete` must not be told `failed`: the picture exists, and a replay tells it so."""
    slip = Slip(on_failure=Stop(step="image"))
    assert "image" not in [letter.key for letter in follow(work(slip), Dead(FAULT), now=NOW)]


def test_a_cancelled_job_is_told_as_cancelled_and_is_no_dead_letter() -> None:
    cancelled = FAULT.model_copy(update={"code": "cancelled"})
    assert [letter.key for letter in follow(work(), Dropped(cancelled), now=NOW)] == ["image.cancelled.job-1", "job.cancelled.job-1"]


def test_a_requeue_says_nothing() -> None:
    assert follow(work(), Requeue("engine died"), now=NOW) == []


def test_progress_is_told_to_listeners_and_to_the_backend() -> None:
    slip = Slip(variables={"generation_id": 7}, on_progress=Stop(step="webhook", arguments={"kind": "progress"}))
    letters = progress(work(slip), Progress(current_step=2, total_steps=8, progress_percent=25))
    assert [letter.key for letter in letters] == ["image.progress.job-1", "webhook"]
    assert json.loads(letters[1].body) == {
        "generation_id": 7,
        "kind": "progress",
        "progress": {"current_step": 2, "total_steps": 8, "progress_percent": 25, "estimated_seconds": 0},
    }


def test_the_slip_of_an_unreadable_command_is_still_found() -> None:
    assert slip_of(b'{"prompt": 5, "slip": {"variables": {"a": 1}}}') == Slip(variables={"a": 1})
    for body in (b"{", b"[]", b"5", b'{"slip": 5}', b"\xff", b"[" * 100_000):
        assert slip_of(body) is None


def test_what_runs_beside_the_way_ends_no_job() -> None:
    """A progress webhook that is done, or dead, says nothing about its job; a retry of it is still beside the way."""
    assert [letter.key for letter in done(work(aside=True), {})] == ["image.completed.job-1"]
    assert [letter.key for letter in follow(work(aside=True), Dead(FAULT), now=NOW)] == ["atelier.dead.image", "image.failed.job-1"]
    (again,) = follow(work(aside=True), Retry(2.0, FAULT), now=NOW)
    assert again.headers[Header.ASIDE] is True
    slip = Slip(on_progress=Stop(step="webhook"))
    assert progress(work(slip), Progress(current_step=1, total_steps=1, progress_percent=100))[1].headers[Header.ASIDE] is True


def test_the_last_word_has_no_deadline_and_comes_from_the_telling_step_too() -> None:
    """A webhook that the job's end overtook is followed by one that tells of the end; one that the backend refused is not."""
    slip = Slip(on_failure=Stop(step="image"))
    for code, told in (("cancelled", 1), ("deadline-exceeded", 1), ("webhook-refused", 0)):
        letters = follow(work(slip, deadline=NOW), Dropped(FAULT.model_copy(update={"code": code})), now=NOW)
        commands = [letter for letter in letters if letter.exchange == channels.COMMANDS]
        assert len(commands) == told
        assert all(Header.DEADLINE not in letter.headers and letter.headers[Header.ASIDE] for letter in commands)
