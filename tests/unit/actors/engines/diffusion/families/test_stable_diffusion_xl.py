"""Stable Diffusion XL: two text encoders, the pooled text, the picture's size, and a VAE in another dtype.

The pictures of every kind of order beside the stock pipelines' are in test_stock_comparison.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from PIL import Image as Pillow

from actors.engines.diffusion.checkpoint_check import check_parts
from actors.engines.diffusion.families.registry import find_family
from actors.engines.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from actors.engines.diffusion.requests import EditSource, InputPicture, ResolvedRequest
from actors.engines.diffusion.schedulers import SCHEDULERS, build_scheduler
from bus.errors import PermanentError
from tests.support.family_rows import SIDE, draw_latents, load_family, make_order, relative_difference, tiny_checkpoint

pytestmark = [
    pytest.mark.models, pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

PICTURE = InputPicture("RGB", SIDE, SIDE, bytes(range(256)) * (3 * SIDE * SIDE // 256))


@pytest.fixture
def family() -> Any:
    return load_family("tiny-sdxl")


def stock_latents(pipeline: Any, order: ResolvedRequest, **more: Any) -> torch.Tensor:
    pipeline.scheduler = build_scheduler(order.scheduler, pipeline.scheduler.config)
    return pipeline(
        **more, num_inference_steps=order.steps, guidance_scale=order.guidance_scale, output_type="latent",
        generator=torch.Generator().manual_seed(order.seed),
    ).images  # fmt: skip


# -- prompts


@pytest.mark.parametrize("negative", ["", "blurred"])
@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("prompt", ["a cat", "x" * 75])
def test_prompt_of_one_window_is_encoded_as_by_the_stock_pipeline(family: Any, prompt: str, zeros: bool, negative: str) -> None:
    family.pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    conditions = family.encode(make_order(family, prompt, negative_prompt=negative, width=96))
    positive, unwanted, pooled, unwanted_pooled = family.pipeline.encode_prompt(prompt, negative_prompt=negative or None)
    for condition, text, pool in zip(conditions, (unwanted, positive), (unwanted_pooled, pooled), strict=True):
        assert torch.equal(condition["text"], text)
        assert torch.equal(condition["pooled"], pool)
        assert condition["measures"].tolist() == [[64, 96, 0, 0, 64, 96]]
    assert bool(conditions[0]["text"].any()) == (not zeros or bool(negative))


def encode_by_hand(pipeline: Any, windows: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of windows, each a text of its own, one behind the other, and the first one's pooled. A blank ends each word."""
    encoded = [pipeline.encode_prompt(window, do_classifier_free_guidance=False) for window in windows]
    return torch.cat([text for text, *_ in encoded], dim=1), encoded[0][2]


def test_long_prompt_is_that_of_the_stock_pipeline_given_its_windows(family: Any) -> None:
    """Words of one byte, so that a window is a text of 75 words."""
    order = make_order(family, "a " * 80 + "b " * 75, negative_prompt="n " * 75 + "m")
    text, pooled = encode_by_hand(family.pipeline, ["a " * 75, "a " * 5 + "b " * 70, "b " * 5])
    unwanted, unwanted_pooled = encode_by_hand(family.pipeline, ["n " * 75, "m", ""])
    expected = stock_latents(
        family.pipeline, order, prompt_embeds=text, pooled_prompt_embeds=pooled, negative_prompt_embeds=unwanted,
        negative_pooled_prompt_embeds=unwanted_pooled, width=SIDE, height=SIDE,
    )  # fmt: skip
    [drawn] = draw_latents(family, [order])
    assert relative_difference(drawn, expected) < 1e-12
    [cut] = draw_latents(family, [make_order(family, "a " * 75, negative_prompt="n " * 75)])
    assert relative_difference(drawn, cut) > 1e-3


def test_zeros_for_no_negative_prompt_are_as_long_as_the_prompt(family: Any) -> None:
    negative, positive = family.encode(make_order(family, "x" * 100))
    assert negative["text"].shape == positive["text"].shape == (1, 154, 64)
    assert not negative["text"].any()
    assert not negative["pooled"].any()


def test_prompt_beyond_eight_windows_is_refused_with_its_count(family: Any) -> None:
    with pytest.raises(PermanentError, match="601 tokens; the model reads at most 600") as raised:
        family.encode(make_order(family, "x" * 601))
    assert raised.value.code == "prompt-too-long"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_rows_of_one_call_have_their_own_schedulers_and_sizes_of_text(family: Any, scheduler: str) -> None:
    order = make_order(family, "a cat", scheduler=scheduler, negative_prompt="blurred", steps=5)
    drawn = draw_latents(family, [make_order(family, "a dog", seed=8, guidance_scale=1.0, scheduler="ddim"), order])[1]
    expected = stock_latents(family.pipeline, order, prompt="a cat", negative_prompt="blurred", width=SIDE, height=SIDE)
    assert relative_difference(drawn, expected) < 1e-12


# -- the VAE


def test_mean_and_deviation_of_the_latents_are_those_of_the_checkpoint(family: Any) -> None:
    """As in Playground 2.5; the stock pipeline takes them into account on the way in and on the way out."""
    family.pipeline.vae.register_to_config(latents_mean=[-1.6, 0.5, 0.2, 1.0], latents_std=[8.0, 5.0, 2.0, 3.0], force_upcast=False)
    order = make_order(family, edit=EditSource(PICTURE, strength=0.7), scheduler="euler")
    [drawn] = draw_latents(family, [order])
    stock = StableDiffusionXLImg2ImgPipeline(**family.pipeline.components, add_watermarker=False)
    stock.set_progress_bar_config(disable=True)
    image = Pillow.frombytes("RGB", (SIDE, SIDE), PICTURE.pixels)
    assert relative_difference(drawn, stock_latents(stock, order, prompt="a cat", image=image, strength=0.7)) < 1e-12
    assert relative_difference(family.unscale_latents(family.scale_latents(drawn)), drawn) < 1e-12
    latents = drawn / 13
    mean, deviation = (torch.tensor(values, dtype=drawn.dtype).view(1, 4, 1, 1) for values in ([-1.6, 0.5, 0.2, 1.0], [8.0, 5.0, 2.0, 3.0]))
    expected = family.pipeline.vae.decode(latents * deviation / family.pipeline.vae.config.scaling_factor + mean).sample
    assert relative_difference(family.decode(order, latents), expected[0].permute(1, 2, 0)) < 1e-6


@pytest.mark.parametrize(
    ("config", "dtype", "kept"),
    [
        ({"force_upcast": True}, torch.float16, torch.float32),
        ({}, torch.bfloat16, torch.float32),
        ({"force_upcast": False}, torch.float16, torch.float16),
        ({"force_upcast": True}, torch.float32, torch.float32),
        ({"force_upcast": True}, torch.float64, torch.float64),
    ],
)
def test_vae_that_overflows_is_kept_in_float32(config: dict[str, Any], dtype: torch.dtype, kept: torch.dtype) -> None:
    assert StableDiffusionXL.vae_dtype(config, dtype) == kept


def test_vae_may_have_another_dtype_than_the_denoiser(family: Any) -> None:
    half = load_family("tiny-sdxl", torch.bfloat16)
    half.pipeline.vae = load_family("tiny-sdxl", torch.float32).pipeline.vae
    order = make_order(half)
    latents = half.sample_latents(half.encode_picture(order, PICTURE), torch.Generator().manual_seed(0))
    assert latents.dtype == torch.bfloat16
    picture = half.decode(order, latents)
    assert picture.dtype == torch.float32
    assert (picture.double() - family.decode(order, latents.double())).abs().max() < 1e-4


# -- a checkpoint

UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "text width": ("unet", {"cross_attention_dim": 32}, "the text encoder gives 64 values a token, the UNet reads 32"),
    "pooled text": ("unet", {"projection_class_embeddings_input_dim": 72}, "the UNet reads 72 values of the pooled text"),
    "nothing of the size": ("unet", {"addition_embed_type": None}, "projection_class_embeddings_input_dim"),
}


@pytest.mark.parametrize(("part", "config", "words"), UNFIT.values(), ids=UNFIT)
def test_parts_of_different_models_are_found(family: Any, part: str, config: dict[str, Any], words: str) -> None:
    getattr(family.pipeline, part).register_to_config(**config)
    with pytest.raises(ValueError, match=words):
        family.check()


def test_value_of_a_wrong_type_is_found_with_its_cause(family: Any) -> None:
    family.pipeline.unet.register_to_config(addition_time_embed_dim="8")
    with pytest.raises(ValueError, match=r"a part is missing or of a wrong type \(TypeError: unsupported operand"):
        check_parts(family)


def test_second_text_encoder_without_projection_is_found(family: Any) -> None:
    family.pipeline.text_encoder_2 = family.pipeline.text_encoder
    with pytest.raises(ValueError, match="text_encoder_2 is a CLIPTextModel without projection"):
        family.check()


def test_refiner_is_refused_by_its_parts(tmp_path: Path) -> None:
    index = json.loads((tiny_checkpoint("tiny-sdxl") / "model_index.json").read_text())
    refiner = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None], "tokenizer": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | refiner))
    with pytest.raises(ValueError, match="it is a StableDiffusionXLImg2ImgPipeline without tokenizer, text_encoder"):
        find_family("refiner", tmp_path)


def test_side_is_that_of_the_checkpoint_or_1024(family: Any) -> None:
    assert isinstance(family.denoiser, UNet2DConditionModel)
    assert StableDiffusionXL.defaults.side == 1024
    assert family.own_side == 64


@pytest.mark.parametrize(
    ("part", "layer", "names"),
    [
        ("unet", "add_embedding.linear_1", {"label_emb.0.0"}),
        ("text_encoder_2", "text_projection", {"text_projection", "text_model.text_projection"}),
    ],
)
def test_layers_have_the_names_of_the_first_stable_diffusion(family: Any, part: str, layer: str, names: set[str]) -> None:
    assert {alias.name for alias in family.lora_aliases(part, layer)} == names
    assert {"lora_te2_": "text_encoder_2", "text_encoder_2.": "text_encoder_2"}.items() <= family.lora_prefixes.items()
