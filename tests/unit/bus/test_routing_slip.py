"""The slip's rules."""

from datetime import UTC, datetime

import pytest

from bus.routing_slip import after_stop, command, depart, ends_here
from contracts.slip import Slip, Stop, Visit

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
