"""A deterministic order in half precision: its picture is the same to the bit alone and beside any others, also where padding drifts."""

import numpy as np
import pytest

from tests.support.family_engine import FamilyEngines
from tests.support.family_orders import CASES, TINY, change

# diffusers, transformers and peft issue warnings about themselves.
pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_deterministic_orders_are_exact_in_bfloat16(name: str, engines: FamilyEngines) -> None:
    family = engines.open(name, "bfloat16")
    case = "mask" if family.tiny.inpaints_only else "mixed" if family.tiny.lora_parts else "text"
    orders = CASES[case](family.tiny, family.loras)
    orders = {order: change(arrival, deterministic=order in "bce") for order, arrival in orders.items()}
    together = family.draw(orders)
    for order in "bce":
        alone = family.draw({order: change(orders[order])})[order]
        assert np.array_equal(together[order].pixels, alone.pixels), order
        assert together[order].latent_difference(alone) == 0, order
        assert together[order].companions == 1
