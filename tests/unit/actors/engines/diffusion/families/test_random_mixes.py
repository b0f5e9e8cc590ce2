"""The same seed gives the same picture, whatever it is drawn beside: random mixes of orders of each family, against the stock pipeline."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from actors.engines.diffusion.requests import ControlSource, DiffusionRequest
from tests.support.family_engine import FamilyEngine, FamilyEngines, pixel_difference
from tests.support.family_orders import TINY, Arrival, edit_source, random_picture

# diffusers, transformers and peft issue warnings about themselves.
pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

PROMPTS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz ,.", min_size=1, max_size=60)
SIZES = ((64, 64), (64, 64), (96, 64), (64, 96))
"""Half of the orders have the same size, so that they share calls."""
SHORT = settings(max_examples=3, phases=[Phase.explicit, Phase.generate])


@pytest.mark.parametrize("name", TINY)
@SHORT
@given(data=st.data())
def test_any_mix_of_orders_matches_the_stock_pipeline(name: str, engines: FamilyEngines, data: st.DataObject) -> None:
    family = engines.open(name)
    orders = {str(seed): draw_order(data.draw, family, seed) for seed in range(1, 1 + data.draw(st.integers(2, 5)))}
    drawn, stock = family.draw(orders), family.draw_stock(orders)
    assert {order: difference for order in orders if (difference := pixel_difference(drawn[order], stock[order])) > 1} == {}


def draw_order(draw: Callable[[st.SearchStrategy[Any]], Any], family: FamilyEngine, seed: int) -> Arrival:
    tiny, (width, height) = family.tiny, draw(st.sampled_from(SIZES))
    guidance = draw(st.sampled_from([tiny.unguided, 1.5, 3.0, 6.0])) if tiny.reads_guidance else None
    request = DiffusionRequest(
        prompt=draw(PROMPTS), seed=seed, negative_prompt="", width=width, height=height, steps=draw(st.integers(2, 8)),
        guidance_scale=guidance, scheduler=draw(st.sampled_from(tiny.schedulers)), deterministic=draw(st.booleans()),
    )  # fmt: skip
    if draw(st.booleans()):
        request = replace(request, negative_prompt=draw(PROMPTS), true_cfg_scale=tiny.true_cfg_scale)
    if tiny.lora_parts:
        scales = draw(st.dictionaries(st.sampled_from(["1", "2", "3"]), st.sampled_from([-0.4, 0.3, 0.8, 1.0]), max_size=3))
        request = replace(request, loras=tuple(replace(family.loras[lora], scale=scale) for lora, scale in scales.items()))
    return Arrival(draw(st.integers(0, 4)), draw_edit(draw, family, request))


def draw_edit(draw: Callable[[st.SearchStrategy[Any]], Any], family: FamilyEngine, request: DiffusionRequest) -> DiffusionRequest:
    """The order with a picture, a mask or a ControlNet, where the checkpoint has them, or as it is."""
    tiny, strength = family.tiny, draw(st.sampled_from([0.5, 0.7, 0.9, 1.0]))
    edits = {"picture": False, "mask": True} if tiny.edits else {}
    kinds = ["mask"] if tiny.inpaints_only else ["text", *edits, *(["control"] if tiny.controlnet else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "control":
        return replace(request, control=ControlSource(random_picture(request, "RGB"), tiny.controlnet, strength))
    return replace(request, edit=edit_source(request, masked=edits[kind], strength=strength)) if kind in edits else request
