"""Flux.1: guidance as a number, by two halves or not at all; tokens and their positions."""

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from actors.engines.diffusion.families.flux import Flux
from bus.errors import PermanentError
from tests.support.family_rows import draw_latents, load_family, make_order, relative_difference, tiny_checkpoint
from tests.support.stock_families import StockFamily

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]


def load(name: str = "tiny-flux") -> Flux:
    family = load_family(name)
    assert isinstance(family, Flux)
    return family


@pytest.mark.parametrize(
    ("changes", "stock_scale"),
    [
        ({}, 1.0),
        ({"negative_prompt": "a dog"}, 2.0),
        ({"negative_prompt": "a dog", "true_cfg_scale": 3.5}, 3.5),
        ({"negative_prompt": "a dog", "true_cfg_scale": 1.0}, 1.0),
    ],
)
def test_a_negative_prompt_makes_two_halves(changes: dict[str, Any], stock_scale: float) -> None:
    family, stock = load(), StockFamily(tiny_checkpoint("tiny-flux"), torch.float64)
    order = make_order(family, **changes)

    latents = draw_latents(family, [order, make_order(family, "a house", guidance_scale=1.5)])[0]

    assert family.is_guided(order) == (stock_scale > 1)
    assert relative_difference(stock.draw(order, true_cfg_scale=stock_scale).latents, latents) < 1e-12


def test_a_true_cfg_scale_without_a_negative_prompt_is_refused() -> None:
    with pytest.raises(PermanentError, match="only with a negative_prompt") as failure:
        make_order(load(), true_cfg_scale=3.0)

    assert failure.value.code == "parameter-unsupported"


def test_the_guidance_of_a_row_is_its_own() -> None:
    family = load()
    orders = [make_order(family, guidance_scale=scale) for scale in (1.0, 3.5, 8.0)]

    together = draw_latents(family, orders)

    alone = [draw_latents(family, [order])[0] for order in orders]
    assert [relative_difference(one, other) < 1e-12 for one, other in zip(alone, together, strict=True)] == [True] * 3
    assert relative_difference(alone[0], alone[2]) > 1e-3


def test_schnell_has_four_steps_and_no_guidance_scale() -> None:
    family = load("tiny-flux-schnell")

    order = make_order(family, steps=None)

    assert (order.steps, order.guidance_scale) == (4, 0.0)
    assert (Flux.defaults.steps, Flux.defaults.guidance_scale) == (28, 3.5)
    with pytest.raises(PermanentError, match="reads no guidance_scale: leave it out") as failure:
        make_order(family, guidance_scale=3.5)
    assert failure.value.code == "parameter-unsupported"


def test_latents_are_packed_as_in_the_stock_pipeline() -> None:
    family = load()
    order = make_order(family, width=96, height=64)
    latents = family.draw_noise(order, torch.Generator().manual_seed(1))

    packed = family.pack(latents)

    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 1, 16, 8, 12))
    assert torch.equal(family.unpack(order, packed), latents)
    assert torch.equal(family.positions(order), FluxPipeline._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32))


def test_clip_need_not_read_the_prompt_to_its_end() -> None:
    family = load()

    with torch.inference_mode():
        long, longer = (family.encode(make_order(family, "a house " * count))[0] for count in (30, 40))

    assert torch.equal(long["pooled"], longer["pooled"])
    assert not torch.equal(long["text"], longer["text"])
