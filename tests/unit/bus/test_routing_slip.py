"""The rules of the routing slip."""

from datetime import UTC, datetime

import pytest

from bus.routing_slip import advance, build_command_body, is_finished, job_result, next_command
from contracts.slip import CompletedStep, LoopBack, Slip, SlipStep, reachable_steps

COMPLETED = CompletedStep(step="image", worker="w", started_at=datetime(2026, 1, 1, tzinfo=UTC), seconds=1.5)


def test_result_overrides_slip_variables() -> None:
    slip = advance(Slip(variables={"images": ["old"], "artist": "Kim"}), {"images": ["new"]}, COMPLETED)
    assert slip.variables == {"images": ["new"], "artist": "Kim"}
    assert slip.log == [COMPLETED]


def test_only_what_a_command_reads_or_the_answer_names_becomes_a_variable() -> None:
    """An answer with its log probabilities may be as large as a message may be; the later commands have no use for it."""
    result = {"response": "long", "logprobs": [1], "tool_calls": [], "text": "line", "verdict_id": "v", "device_seconds": 1.5}
    assert advance(Slip(answer=["verdict_id", "device_seconds"]), result, COMPLETED).variables == {"text": "line", "verdict_id": "v"}


def test_next_command_takes_variables_that_its_model_has_fields_for() -> None:
    slip = Slip(itinerary=[SlipStep(step="upload")], variables={"images": [1], "name": "gen-1", "seed": 7})
    step, body = next_command(slip)
    assert step == "upload"
    assert {name: body[name] for name in body if name != "slip"} == {"images": [1], "name": "gen-1"}


def test_argument_overrides_variable() -> None:
    slip_step = SlipStep(step="upload", arguments={"name": "theirs"})
    assert build_command_body(slip_step, Slip(variables={"name": "ours"}))["name"] == "theirs"


def test_advance_removes_first_step_only() -> None:
    slip = Slip(itinerary=[SlipStep(step="watermark", gate="is_valid", reply_here=True), SlipStep(step="upload")], variables={"a": 1})
    remaining = Slip.model_validate(next_command(slip)[1]["slip"])
    assert steps(remaining) == ["upload"]
    assert (remaining.gate, remaining.reply_here, remaining.variables) == ("is_valid", True, {"a": 1})


def test_variable_named_slip_does_not_replace_the_slip() -> None:
    slip = Slip(itinerary=[SlipStep(step="upload")], variables={"slip": "text"})
    assert isinstance(next_command(slip)[1]["slip"], dict)


@pytest.mark.parametrize(
    ("slip", "result", "expected"),
    [
        (None, {}, True),
        (Slip(), {}, True),
        (Slip(itinerary=[SlipStep(step="upload")]), {}, False),
        (Slip(itinerary=[SlipStep(step="upload")], gate="is_valid"), {"is_valid": True}, False),
        (Slip(itinerary=[SlipStep(step="upload")], gate="is_valid"), {"is_valid": False}, True),
        (Slip(itinerary=[SlipStep(step="upload")], gate="is_valid"), {}, True),
    ],
)
def test_job_ends_after_last_step_or_unmet_condition(slip: Slip | None, result: dict[str, object], expected: bool) -> None:
    assert is_finished(slip, result) is expected


def steps(slip: Slip) -> list[str]:
    return [slip_step.step for slip_step in slip.itinerary]


def slip_with_loop(times: int) -> Slip:
    """A job at the step with the condition, which may loop back `times` times."""
    loop = LoopBack(
        stops=[SlipStep(step="image", arguments={"prompt": "p"}), SlipStep(step="validate", gate="is_valid")], times=times, fresh=["seed"]
    )
    return Slip(itinerary=[SlipStep(step="upload")], gate="is_valid", again=loop, variables={"seed": 7})


def test_unmet_condition_loops_back_with_new_seed_and_fewer_tries() -> None:
    """Deterministic: a redelivery gives the same slip."""
    looped_slip = advance(slip_with_loop(2), {"is_valid": False}, COMPLETED)
    assert steps(looped_slip) == ["image", "validate", "upload"]
    assert looped_slip.variables["seed"] != 7
    assert looped_slip == advance(slip_with_loop(2), {"is_valid": False}, COMPLETED)
    conditional = looped_slip.itinerary[1]
    assert (conditional.gate, conditional.again and conditional.again.times) == ("is_valid", 1)
    assert not is_finished(slip_with_loop(2), {"is_valid": False})


def test_unmet_condition_without_loop_ends_job() -> None:
    assert is_finished(slip_with_loop(0), {"is_valid": False})


def test_met_condition_continues_despite_loops() -> None:
    slip = advance(slip_with_loop(2), {"is_valid": True}, COMPLETED)
    assert (steps(slip), slip.variables["seed"]) == (["upload"], 7)


def test_always_rejected_job_ends_after_max_tries() -> None:
    """Two loops are three pictures, each with a seed of its own."""
    slip, seeds = slip_with_loop(2), [7]
    while not is_finished(slip, {"is_valid": False}):
        slip = advance(slip, {"is_valid": False}, COMPLETED)
        seeds.append(slip.variables["seed"])
        while slip.itinerary[0].step != "upload":
            slip = Slip.model_validate(next_command(slip)[1]["slip"])
    assert len(set(seeds)) == len(seeds) == 3


def test_missing_seed_is_left_to_step() -> None:
    slip = slip_with_loop(1).model_copy(update={"variables": {}})
    assert "seed" not in advance(slip, {"is_valid": False}, COMPLETED).variables


def test_reply_is_last_result_plus_named_variables() -> None:
    slip = Slip(variables={"result_url": "u", "seed": 1}, answer=["result_url", "absent"])
    assert job_result(slip, {"delivered": True}) == {"result_url": "u", "delivered": True}
    assert job_result(None, {"a": 1}) == {"a": 1}


def test_reachable_steps_of_slip_are_listed() -> None:
    """An unknown step is found before the first one runs."""
    slip = slip_with_loop(1).model_copy(update={"on_refusal": SlipStep(step="webhook")})
    assert [slip_step.step for slip_step in reachable_steps(slip)] == ["upload", "image", "validate", "webhook"]
