"""PixArt-Σ: prompts in lower case with a mask, the noise without its variance, sizes near those of the training."""

import pytest
import torch

from actors.engines.diffusion.families.pixart_sigma import PixArtSigma
from actors.engines.diffusion.requests import EditSource, InputPicture
from actors.engines.diffusion.schedulers import SCHEDULERS
from bus.errors import PermanentError
from tests.support.family_rows import draw_latents, load_family, make_order, relative_difference, tiny_checkpoint
from tests.support.stock_families import StockFamily

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]


def load() -> PixArtSigma:
    family = load_family("tiny-pixart-sigma")
    assert isinstance(family, PixArtSigma)
    return family


@pytest.mark.parametrize("scheduler", ["dpm++", "euler", "ddim", "unipc"])
def test_orders_have_the_schedulers_of_stable_diffusion(scheduler: str) -> None:
    family, stock = load(), StockFamily(tiny_checkpoint("tiny-pixart-sigma"), torch.float64)
    order = make_order(family, scheduler=scheduler, steps=4)

    latents = draw_latents(family, [order, make_order(family, "a house", steps=5)])[0]

    assert scheduler in SCHEDULERS
    assert latents.shape == (1, 4, 8, 8)
    assert relative_difference(stock.draw(order).latents, latents) < 1e-12


def test_the_text_of_a_prompt_is_that_in_lower_case_and_its_padding_is_masked() -> None:
    family = load()

    with torch.inference_mode():
        (one,), (other,) = (family.encode(make_order(family, prompt, guidance_scale=1.0)) for prompt in ("  A CAT ", "a cat"))

    assert torch.equal(one["text"], other["text"])
    assert (one["mask"].shape, int(one["mask"].sum())) == ((1, 300), family.count_prompt("a cat")[0])


def test_a_picture_to_start_from_is_refused() -> None:
    edit = EditSource(InputPicture("RGB", 64, 64, bytes(64 * 64 * 3)))

    with pytest.raises(PermanentError, match="PixArt-Σ has no img2img; its edits: none") as failure:
        make_order(load(), edit=edit)

    assert failure.value.code == "edit-unsupported"


def test_a_side_of_more_than_twice_the_checkpoint_s_own_is_refused() -> None:
    family = load()
    assert (family.own_side, make_order(family, width=128).width) == (64, 128)

    with pytest.raises(PermanentError, match="144×64: both sides may have at most 128 pixels") as failure:
        make_order(family, width=144)

    assert failure.value.code == "size-unsupported"
