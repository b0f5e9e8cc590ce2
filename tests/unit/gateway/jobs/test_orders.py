"""Orders and the routing slips built from them."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from contracts.slip import Slip
from gateway.jobs.orders import JobOrder

ORDERS: TypeAdapter[Any] = TypeAdapter(JobOrder)


def slip_of(**fields: Any) -> Slip:
    slip: Slip = ORDERS.validate_python(fields).slip("j-1")
    return slip


def steps_of(slip: Slip) -> list[str]:
    return [step.step for step in slip.itinerary]


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"kind": "image_order", "prompt": "x"}, ["image", "watermark", "upload"]),
        ({"kind": "image_order", "prompt": "x", "generation_id": 5}, ["image", "watermark", "upload", "webhook"]),
        ({"kind": "ad", "prompt": "x"}, ["text", "image", "validate", "overlay", "judge", "watermark", "upload"]),
        ({"kind": "ad", "prompt": "x", "text": "Sale"}, ["image", "validate", "overlay", "judge", "watermark", "upload"]),
        ({"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "x"}}]}, ["consult"]),
    ],
)
def test_order_becomes_itinerary(fields: dict[str, Any], steps: list[str]) -> None:
    slip = slip_of(**fields)
    assert steps_of(slip) == steps
    assert (slip.on_failure is not None) is ("generation_id" in fields)


@pytest.mark.parametrize(("fields", "name"), [({}, "job-j-1"), ({"generation_id": 5}, "gen-5")])
def test_image_is_named_after_job_or_generation(fields: dict[str, Any], name: str) -> None:
    assert slip_of(kind="image_order", prompt="x", **fields).variables["name"] == name


def test_seed_is_a_variable_and_prompt_an_argument() -> None:
    slip = slip_of(kind="image_order", prompt="x", seed=42, width=128)
    assert slip.itinerary[0].arguments == {"prompt": "x", "width": 128}
    assert slip.variables["seed"] == 42
    assert "prompt" not in slip.variables


@pytest.mark.parametrize("tries", [0, 3])
def test_rejected_ad_loops_back_to_image(tries: int) -> None:
    slip = slip_of(kind="ad", prompt="x", text="Sale", tries=tries)
    (gated,) = [step for step in slip.itinerary if step.again]
    assert gated.again is not None
    assert (gated.step, gated.gate, gated.again.times, gated.again.fresh) == ("validate", "is_valid", tries, ["seed"])
    assert [step.step for step in gated.again.stops] == ["image", "validate"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kind": "itinerary", "stops": [{"step": "consult"}], "variables": {"prompt": "x", "x": float("nan")}}, "not valid as JSON"),
        ({"kind": "image_order", "prompt": "a\x00"}, "NUL"),
        ({"kind": "itinerary", "stops": [{"step": "job.get"}]}, "stops.0"),
        ({"kind": "itinerary", "stops": [{"step": "validate", "gate": "analysis"}]}, "has no gate 'analysis'"),
        ({"kind": "itinerary", "stops": [{"step": "image"}]}, "prompt"),
        ({"kind": "itinerary", "stops": [{"step": "image", "arguments": {"prompt": "x", "slip": {}}}]}, "slip"),
    ],
)
def test_invalid_order_is_rejected(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        ORDERS.validate_python(fields)


def test_first_step_may_take_its_fields_from_variables() -> None:
    slip = slip_of(kind="itinerary", stops=[{"step": "consult"}], variables={"prompt": "x"})
    assert (slip.variables, slip.itinerary[0].arguments) == ({"prompt": "x"}, {})
