"""Orders of every kind, drawn together, against the stock pipeline alone: every family × text, LoRA mix, picture, mask and ControlNet.

FP32: at most 1 of 255. FP64: 0 of 255, and latents that differ by rounding alone.
"""

import numpy as np
import pytest

from tests.support.family_engine import FamilyEngines, kept_pixels, pixel_difference
from tests.support.family_orders import CASES, TINY, TinyFamily, different_orders

# diffusers, transformers and peft issue warnings about themselves.
pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

VISIBLE = 20
"""Of 255: what another prompt, picture or adapter changes at least."""


def cases_of(family: TinyFamily) -> list[str]:
    if family.inpaints_only:
        return ["mask"]
    loras, edits, control = bool(family.lora_parts), family.edits, bool(family.controlnet)
    offered = {"text": True, "lora": loras, "picture": edits, "mask": edits, "control": control, "mixed": loras}
    return [case for case, is_offered in offered.items() if is_offered]


TABLE = [(name, case) for name, family in TINY.items() for case in cases_of(family)]
FULLEST = [(name, cases_of(family)[-1]) for name, family in TINY.items()]
"""Of each family the case with the most kinds of rows in one call."""


@pytest.mark.parametrize(("name", "case"), TABLE)
def test_orders_drawn_together_match_the_stock_pipeline(name: str, case: str, engines: FamilyEngines) -> None:
    orders, drawn = engines.draw_case(name, case)
    stock = engines.open(name).draw_stock(orders)
    assert {order: difference for order in orders if (difference := pixel_difference(drawn[order], stock[order])) > 1} == {}
    assert max(picture.companions for picture in drawn.values()) >= 2
    for order, arrival in orders.items():
        kept = kept_pixels(arrival.request)
        assert kept is None or np.array_equal(drawn[order].pixels[kept.where], kept.picture[kept.where])


@pytest.mark.parametrize(("name", "case"), FULLEST)
def test_in_double_precision_only_rounding_remains(name: str, case: str, engines: FamilyEngines) -> None:
    """So no order affects another, and what remains in FP32 is rounding."""
    family = engines.open(name, "float64")
    orders = CASES[case](family.tiny, family.loras)
    drawn, stock = family.draw(orders), family.draw_stock(orders)
    assert {order: difference for order in orders if (difference := pixel_difference(drawn[order], stock[order]))} == {}
    assert max(drawn[order].latent_difference(stock[order]) for order in orders) <= 1e-12


@pytest.mark.parametrize(("name", "case"), TABLE)
def test_another_prompt_picture_or_adapter_is_visible(name: str, case: str, engines: FamilyEngines) -> None:
    """So the comparison can fail: each order lacks or changes one thing, and its picture differs by far more than rounding."""
    orders, drawn = engines.draw_case(name, case)
    other = engines.open(name).draw(different_orders(orders))
    assert {order: difference for order in orders if (difference := pixel_difference(drawn[order], other[order])) < VISIBLE} == {}
