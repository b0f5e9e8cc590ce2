"""Qwen-Image: guidance that keeps the norm, texts of several lengths in one call, and the frames of its VAE."""

from typing import Any

import pytest
import torch

from actors.engines.diffusion.families.qwen_image import QwenImage
from bus.errors import PermanentError
from tests.support.family_rows import draw_latents, load_family, make_order, relative_difference, tiny_checkpoint
from tests.support.stock_families import StockFamily

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]


def load() -> QwenImage:
    family = load_family("tiny-qwen-image")
    assert isinstance(family, QwenImage)
    return family


@pytest.mark.parametrize(
    ("changes", "negative"),
    [
        ({}, " "),
        ({"negative_prompt": "a dog"}, "a dog"),
        ({"guidance_scale": 1.0}, None),
        ({"guidance_scale": 1.0, "negative_prompt": "a dog"}, None),
    ],
)
def test_an_order_is_guided_at_a_scale_over_1_with_a_space_where_it_has_no_negative_prompt(
    changes: dict[str, Any], negative: str | None
) -> None:
    family, stock = load(), StockFamily(tiny_checkpoint("tiny-qwen-image"), torch.float64)
    order = make_order(family, **changes)

    latents = draw_latents(family, [order, make_order(family, "a much longer prompt of another order")])[0]

    assert family.is_guided(order) == (negative is not None)
    assert relative_difference(stock.draw(order, negative_prompt=negative).latents, latents) < 1e-12


def test_guidance_keeps_the_norm_of_every_token() -> None:
    family, order = load(), make_order(load(), guidance_scale=7.0)
    row: Any = type("Row", (), {"request": order})
    negative, positive = torch.randn((2, 1, 16, 64), generator=torch.Generator().manual_seed(1))

    guided = family.guide(row, torch.cat([negative, positive]))

    torch.testing.assert_close(guided.norm(dim=-1), positive.norm(dim=-1))
    assert not torch.allclose(guided, positive)
    assert torch.equal(family.guide(row, positive), positive)


def test_texts_are_masked_only_where_they_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    family = load()
    masks: list[torch.Tensor | None] = []
    forward = family.denoiser.forward

    def record(**arguments: Any) -> Any:
        masks.append(arguments["encoder_hidden_states_mask"])
        return forward(**arguments)

    monkeypatch.setattr(family.denoiser, "forward", record)
    unguided = [make_order(family, prompt, guidance_scale=1.0, steps=2) for prompt in ("a cat", "a dog", "a horse")]

    draw_latents(family, unguided[:2])
    draw_latents(family, unguided)

    assert masks[:2] == [None, None]
    padded = masks[2]
    assert padded is not None
    assert (padded.sum(dim=1) - padded.shape[1]).tolist() == [-2, -2, 0]


def test_one_step_is_refused_where_the_schedule_is_stretched_between_two() -> None:
    family = load()

    with pytest.raises(PermanentError, match="Qwen-Image needs at least 2 steps") as failure:
        make_order(family, steps=1)

    assert failure.value.code == "parameter-unsupported"
    assert bool(draw_latents(family, [make_order(family, steps=2)])[0].isfinite().all())


def test_a_picture_is_one_frame() -> None:
    family = load()
    order = make_order(family, width=96, height=64)
    noise = family.draw_noise(order, torch.Generator().manual_seed(1))

    frames = family.unpack(order, family.pack(noise))

    assert noise.shape == (1, 1, 16, 8, 12)
    assert torch.equal(frames, noise.transpose(1, 2))
    torch.testing.assert_close(family.scale_latents(family.unscale_latents(frames)), frames)
    with torch.inference_mode():
        assert family.decode(order, family.pack(noise)).shape == (64, 96, 3)


def test_a_transformer_that_reads_the_guidance_is_refused() -> None:
    family = load()
    family.denoiser.register_to_config(guidance_embeds=True)

    with pytest.raises(ValueError, match=r"guidance_embeds in transformer/config\.json"):
        family.check()


def test_the_instruction_before_the_prompt_is_not_counted() -> None:
    family = load()
    (empty, limit), (short, _) = family.count_prompt(""), family.count_prompt("ab{}")

    assert (short - empty, limit) == (4, 1024)
    with torch.inference_mode():
        assert family.encode_prompt("ab{}")["text"].shape[1] == short
