"""Orders and the routing slips built from them."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bus.routing_slip import next_command
from contracts.slip import Slip, reachable_steps
from contracts.steps import CLIENT_STEPS, COMMANDS
from contracts.wire import Step
from gateway.jobs.orders import Itinerary, JobOrder, StepOrder

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


@pytest.mark.parametrize("place", ["first", "later"])
def test_itinerary_may_not_name_the_webhook(place: str) -> None:
    """The error names the steps that it may."""
    stops = [{"step": "consult", "arguments": {"prompt": "x"}}, {"step": "webhook", "arguments": {"kind": "failed", "generation_id": 7}}]
    with pytest.raises(ValidationError) as raised:
        ORDERS.validate_python({"kind": "itinerary", "stops": stops if place == "later" else stops[1:]})
    assert all(f"'{step}'" in str(raised.value) for step in CLIENT_STEPS)


def test_every_step_is_either_allowed_to_clients_or_refused() -> None:
    """A new step has to be added to one of the two."""
    assert set(CLIENT_STEPS) | {Step.WEBHOOK} == set(COMMANDS)


@pytest.mark.parametrize("step", CLIENT_STEPS)
def test_variables_of_an_itinerary_lead_to_no_other_step(step: str) -> None:
    """Whatever variables a client sets, nothing runs beside its steps: no webhook on progress, failure or refusal, no loop back."""
    fields = {name: "x" for model in COMMANDS.values() for name in model.model_fields} | {"on_failure": {"step": "webhook"}, "again": {}}
    order = Itinerary.model_construct(kind="itinerary", stops=[StepOrder.model_construct(step=step)], variables=fields, answer=[])
    slip = order.slip("j-1")
    assert [reached.step for reached in reachable_steps(slip)] == [step]
    name, body = next_command(slip)
    assert name == step
    assert not Slip.model_validate(body["slip"]).itinerary


def test_first_step_may_take_its_fields_from_variables() -> None:
    slip = slip_of(kind="itinerary", stops=[{"step": "consult"}], variables={"prompt": "x"})
    assert (slip.variables, slip.itinerary[0].arguments) == ({"prompt": "x"}, {})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://Backend.example:8443/any/path?x=1", "https://backend.example:8443"),
        ("http://user:word@backend.example/api/webhooks/x", "http://backend.example"),
        ("", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("kind", ["image_order", "ad"])
def test_backend_address_is_reduced_to_its_origin(kind: str, given: str | None, kept: str | None) -> None:
    slip = slip_of(kind=kind, prompt="x", generation_id=5, base_url=given)
    assert slip.variables.get("base_url") == kept


@pytest.mark.parametrize("address", ["backend.example", "ftp://backend.example", "https:///x", "//backend.example", "https://\ud800/"])
def test_backend_address_that_is_no_http_address_is_rejected(address: str) -> None:
    with pytest.raises(ValidationError):
        slip_of(kind="image_order", prompt="x", base_url=address)


CLAIM = {"uri": "s3://b/claims/aa/a.png", "sha256": "a" * 64, "media_type": "image/png", "size": 9}


@pytest.mark.parametrize("picture", [CLAIM, "aGVsbG8="])
def test_picture_of_an_image_order_is_a_claim_or_base64(picture: Any) -> None:
    order = {"prompt": "x", "edit": {"image": picture, "mask": picture, "strength": 0.5}, "control": {"image": picture, "model": "canny"}}
    for kind in ("image_order", "ad"):
        arguments = next(step.arguments for step in slip_of(kind=kind, **order).itinerary if step.step == Step.IMAGE)
        assert {name: arguments[name] for name in ("edit", "control")} == {name: order[name] for name in ("edit", "control")}
    slip = slip_of(kind="itinerary", stops=[{"step": "image", "arguments": {"edit": order["edit"]}}], variables={"prompt": "x"})
    assert slip.itinerary[0].arguments == {"edit": order["edit"]}


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        ({"image": ""}, "image"),
        ({"image": CLAIM | {"note": 1}}, "note"),
        ({"image": CLAIM, "invert": True}, "invert"),
        ({"mask": CLAIM}, "image"),
        ({"image": CLAIM, "strength": 0}, "strength"),
    ],
)
def test_wrong_picture_is_rejected_where_it_is(edit: dict[str, Any], place: str) -> None:
    for order in (
        {"kind": "image_order", "prompt": "x", "edit": edit},
        {"kind": "itinerary", "stops": [{"step": "image", "arguments": {"prompt": "x", "edit": edit}}]},
        {"kind": "itinerary", "stops": [{"step": "image", "arguments": {"prompt": "x"}}], "variables": {"edit": edit}},
    ):
        with pytest.raises(ValidationError, match=place):
            ORDERS.validate_python(order)


@pytest.mark.parametrize("kind", ["image_order", "ad"])
def test_the_last_step_that_changes_a_picture_writes_the_ordered_format(kind: str) -> None:
    """The steps before it pass PNGs: nothing is compressed twice."""
    slip = slip_of(kind=kind, prompt="x", output_format="jpeg", quality=80)
    arguments = {step.step: step.arguments for step in slip.itinerary}
    assert arguments["watermark"] == {"output_format": "jpeg", "quality": 80}
    assert arguments["image"] == {"prompt": "x"}
    with pytest.raises(ValidationError, match="a PNG has no quality"):
        slip_of(kind=kind, prompt="x", quality=80)


@pytest.mark.parametrize("kind", ["image_order", "ad"])
def test_order_has_a_limit_of_loras(kind: str) -> None:
    eight = [{"name": f"style-{number}"} for number in range(8)]
    (arguments,) = [step.arguments for step in slip_of(kind=kind, prompt="x", loras=eight).itinerary if step.step == Step.IMAGE]
    assert arguments["loras"] == eight
    for loras in ({"loras": [*eight, {"name": "one more"}]}, {"loras": eight, "lora": {"name": "one more"}}):
        with pytest.raises(ValidationError, match="at most 8"):
            slip_of(kind=kind, prompt="x", **loras)
