"""The slip's rules."""

from datetime import UTC, datetime

import pytest

from bus.routing_slip import after_stop, answer, command, depart, ends_here
from contracts.slip import Again, Slip, Stop, Visit, every_stop

VISIT = Visit(step="image", worker="w", started_at=datetime(2026, 1, 1, tzinfo=UTC), seconds=1.5)


def test_a_result_becomes_variables_and_outranks_what_was_there() -> None:
    slip = after_stop(Slip(variables={"images": ["old"], "artist": "Kim"}), {"images": ["new"]}, VISIT)
    assert slip.variables == {"images": ["new"], "artist": "Kim"}
    assert slip.log == [VISIT]


def test_the_next_command_takes_the_variables_that_it_has_a_field_for() -> None:
    slip = Slip(itinerary=[Stop(step="upload")], variables={"images": [1], "name": "gen-1", "seed": 7})
    step, body = depart(slip)
    assert step == "upload"
    assert {name: body[name] for name in body if name != "slip"} == {"images": [1], "name": "gen-1"}


def test_an_argument_outranks_a_variable() -> None:
    stop = Stop(step="upload", arguments={"name": "theirs"})
    assert command(stop, Slip(variables={"name": "ours"}))["name"] == "theirs"


def test_departing_takes_the_stop_off_and_keeps_the_rest() -> None:
    slip = Slip(itinerary=[Stop(step="watermark", gate="is_valid", reply_here=True), Stop(step="upload")], variables={"a": 1})
    ahead = Slip.model_validate(depart(slip)[1]["slip"])
    assert [stop.step for stop in ahead.itinerary] == ["upload"]
    assert (ahead.gate, ahead.reply_here, ahead.variables) == ("is_valid", True, {"a": 1})


def test_a_variable_named_slip_never_replaces_the_slip() -> None:
    slip = Slip(itinerary=[Stop(step="upload")], variables={"slip": "mischief"})
    assert isinstance(depart(slip)[1]["slip"], dict)


@pytest.mark.parametrize(
    ("slip", "result", "expected"),
    [
        (None, {}, True),
        (Slip(), {}, True),
        (Slip(itinerary=[Stop(step="upload")]), {}, False),
        (Slip(itinerary=[Stop(step="upload")], gate="is_valid"), {"is_valid": True}, False),
        (Slip(itinerary=[Stop(step="upload")], gate="is_valid"), {"is_valid": False}, True),
        (Slip(itinerary=[Stop(step="upload")], gate="is_valid"), {}, True),
    ],
)
def test_where_a_job_ends(slip: Slip | None, result: dict[str, object], expected: bool) -> None:
    assert ends_here(slip, result) is expected


def looped(times: int) -> Slip:
    """A job that stands at its gate, with `times` ways back."""
    again = Again(
        stops=[Stop(step="image", arguments={"prompt": "p"}), Stop(step="validate", gate="is_valid")], times=times, fresh=["seed"]
    )
    return Slip(itinerary=[Stop(step="upload")], gate="is_valid", again=again, variables={"seed": 7})


def test_a_shut_gate_goes_back_with_another_value_and_one_way_fewer() -> None:
    """Pure: the same delivery twice gives the same slip twice."""
    back = after_stop(looped(2), {"is_valid": False}, VISIT)
    assert [stop.step for stop in back.itinerary] == ["image", "validate", "upload"]
    assert back.variables["seed"] != 7
    assert back == after_stop(looped(2), {"is_valid": False}, VISIT)
    gate = back.itinerary[1]
    assert (gate.gate, gate.again and gate.again.times) == ("is_valid", 1)
    assert not ends_here(looped(2), {"is_valid": False})


def test_without_a_way_back_a_shut_gate_ends_the_job() -> None:
    assert ends_here(looped(0), {"is_valid": False})


def test_an_open_gate_goes_on_whatever_ways_back_there_are() -> None:
    ahead = after_stop(looped(2), {"is_valid": True}, VISIT)
    assert ([stop.step for stop in ahead.itinerary], ahead.variables["seed"]) == (["upload"], 7)


def test_a_job_that_is_always_refused_ends_after_its_tries() -> None:
    """Two ways back are three pictures, each with a seed of its own."""
    slip, seeds = looped(2), [7]
    while not ends_here(slip, {"is_valid": False}):
        slip = after_stop(slip, {"is_valid": False}, VISIT)
        seeds.append(slip.variables["seed"])
        while slip.itinerary[0].step != "upload":
            slip = Slip.model_validate(depart(slip)[1]["slip"])
    assert len(set(seeds)) == len(seeds) == 3


def test_a_seed_that_nobody_gave_is_left_to_the_step() -> None:
    slip = looped(1).model_copy(update={"variables": {}})
    assert "seed" not in after_stop(slip, {"is_valid": False}, VISIT).variables


def test_the_answer_is_the_last_result_and_what_the_slip_names() -> None:
    slip = Slip(variables={"result_url": "u", "seed": 1}, answer=["result_url", "absent"])
    assert answer(slip, {"delivered": True}) == {"result_url": "u", "delivered": True}
    assert answer(None, {"a": 1}) == {"a": 1}


def test_every_stop_that_a_slip_may_lead_to_is_known() -> None:
    """So that an unknown step is found before the first one runs."""
    slip = looped(1).model_copy(update={"on_refusal": Stop(step="webhook")})
    assert [stop.step for stop in every_stop(slip)] == ["upload", "image", "validate", "webhook"]
