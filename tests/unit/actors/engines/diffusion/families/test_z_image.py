"""Z-Image: guidance from 0 on, latents in float32, and layers that see the tokens of all rows as one."""

from typing import Any

import pytest
import torch

from actors.engines.diffusion.families.z_image import ZImage
from actors.engines.diffusion.requests import EditSource, InputPicture
from tests.support.family_rows import draw_latents, load_family, make_order, relative_difference, tiny_checkpoint
from tests.support.stock_families import StockFamily

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]


def load(dtype: torch.dtype = torch.float64) -> ZImage:
    family = load_family("tiny-z-image", dtype)
    assert isinstance(family, ZImage)
    return family


@pytest.mark.parametrize(("scale", "halves"), [(0.0, 1), (0.5, 2), (1.0, 2), (5.0, 2)])
def test_an_order_is_guided_at_a_scale_over_0(scale: float, halves: int) -> None:
    family, stock = load(), StockFamily(tiny_checkpoint("tiny-z-image"), torch.float64)
    order = make_order(family, guidance_scale=scale)

    latents = draw_latents(family, [order, make_order(family, "a much longer prompt of another order")])[0]

    with torch.inference_mode():
        assert len(family.encode(order)) == halves
    assert relative_difference(stock.draw(order).latents, latents) < 1e-12


def test_latents_are_in_float32_whatever_the_model_is_in() -> None:
    family = load(torch.bfloat16)
    picture = InputPicture("RGB", 64, 64, bytes(64 * 64 * 3))
    plain, edit = make_order(family), make_order(family, edit=EditSource(picture))
    generator = torch.Generator().manual_seed(1)

    drawn = [family.draw_noise(order, generator).dtype for order in (plain, edit)]

    assert drawn == [torch.float32, torch.bfloat16]
    latents = draw_latents(family, [plain, edit])
    assert [tensor.dtype for tensor in latents] == [torch.float32, torch.float32]
    with torch.inference_mode():
        assert family.decode(plain, latents[0]).dtype == torch.bfloat16


def test_the_levels_of_noise_are_rounded_as_in_the_stock_pipeline() -> None:
    family: Any = load()

    assert family.noise_levels(7) == torch.linspace(1.0, 1 / 7, 7).tolist()
    assert family.noise_levels(7)[1] != 1.0 - 1 / 7


@pytest.mark.parametrize(
    ("layer", "excluded"),
    [
        ("all_x_embedder.2-1", True),
        ("cap_embedder.1", True),
        ("layers.0.attention.to_q", False),
        ("context_refiner.0.attention.to_q", False),
    ],
)
def test_the_embedders_of_pictures_and_texts_cannot_be_changed_for_one_row(layer: str, excluded: bool) -> None:
    assert load().lora_excluded("transformer", layer) is excluded
