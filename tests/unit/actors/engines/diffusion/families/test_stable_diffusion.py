"""Stable Diffusion: long prompts, prediction types, schedulers, ControlNet rows and the checks of a checkpoint.

The pictures of every kind of order beside the stock pipelines' are in test_stock_comparison.py.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image as Pillow

from actors.engines.diffusion.batching import ControlHint, DiffusionRow, advance_rows
from actors.engines.diffusion.families.stable_diffusion import StableDiffusion
from actors.engines.diffusion.requests import EditSource, InputPicture, ResolvedRequest
from actors.engines.diffusion.schedulers import SCHEDULERS, build_scheduler
from actors.engines.diffusion.tiny_stable_diffusion import build_pipeline
from bus.errors import PermanentError

pytestmark = [
    pytest.mark.models, pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip
SIDE = 64


@pytest.fixture
def pipeline() -> Iterator[StableDiffusionPipeline]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    built = build_pipeline().to(torch.float64)
    built.set_progress_bar_config(disable=True)
    yield built
    torch.set_num_threads(threads)


def request(prompt: str = "a cat", **changes: Any) -> ResolvedRequest:
    given = {"seed": 3, "width": SIDE, "height": SIDE, "steps": 3, "guidance_scale": 4.0, "scheduler": "euler"}
    return ResolvedRequest(prompt, **{**given, **changes})


def build_row(family: Any, order: ResolvedRequest, **more: Any) -> DiffusionRow:
    generator, scheduler, conditions = torch.Generator().manual_seed(order.seed), family.build_schedule(order), family.encode(order)
    latents = family.draw_noise(order, generator) * scheduler.init_noise_sigma
    group = family.group(order, conditions)
    return DiffusionRow(0, 0, order, group, scheduler, scheduler.timesteps, generator, latents, conditions, **more)


@torch.inference_mode()
def draw(family: Any, rows: list[DiffusionRow]) -> list[torch.Tensor]:
    """The rows' latents; each call has all rows that are not done."""
    while remaining := [row for row in rows if not row.done]:
        advance_rows(family, remaining, lambda _: None, 8)
    return [row.latents for row in rows]


def stock_latents(pipeline: Any, order: ResolvedRequest, **more: Any) -> torch.Tensor:
    pipeline.scheduler = build_scheduler(order.scheduler, pipeline.scheduler.config)
    given = more or {"prompt": order.prompt, "negative_prompt": order.negative_prompt or None}
    return pipeline(
        **given, width=order.width, height=order.height, num_inference_steps=order.steps, guidance_scale=order.guidance_scale,
        generator=torch.Generator().manual_seed(order.seed), output_type="latent",
    ).images  # fmt: skip


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


# -- prompts


@pytest.mark.parametrize("prompt", ["a cat", "x" * 75, "한국어 prompt, (weights:1.3)"])
def test_prompt_of_one_window_is_encoded_as_by_the_stock_pipeline(pipeline: Any, prompt: str) -> None:
    negative, positive = StableDiffusion(pipeline).encode(request(prompt, negative_prompt="blurred"))
    stock_positive, stock_negative = pipeline.encode_prompt(prompt, "cpu", 1, True, negative_prompt="blurred")
    assert torch.equal(positive["text"], stock_positive)
    assert torch.equal(negative["text"], stock_negative)


def text_by_hand(pipeline: Any, windows: list[list[int]]) -> torch.Tensor:
    """The embeddings of windows of tokens, one behind the other. The tiny tokenizer: 512 begins, 513 ends and pads."""
    rows = [[512, *ids, *[513] * (76 - len(ids))] for ids in windows]
    return torch.cat([pipeline.text_encoder(torch.tensor([row]))[0] for row in rows], dim=1)


def test_long_prompt_is_that_of_the_stock_pipeline_given_its_windows(pipeline: Any) -> None:
    """A token of the tiny model is a byte: 160 of the prompt are three windows, 80 of the negative prompt two and that of an empty text."""
    family, order = StableDiffusion(pipeline), request("xy" * 80, negative_prompt="n" * 80)
    [drawn] = draw(family, [build_row(family, order)])
    ids, negative = (pipeline.tokenizer(text, add_special_tokens=False).input_ids for text in (order.prompt, order.negative_prompt))
    expected = stock_latents(
        pipeline,
        order,
        prompt_embeds=text_by_hand(pipeline, [ids[:75], ids[75:150], ids[150:]]),
        negative_prompt_embeds=text_by_hand(pipeline, [negative[:75], negative[75:], []]),
    )
    assert difference(drawn, expected) < 1e-12
    [cut] = draw(family, [build_row(family, request("xy" * 37 + "x", negative_prompt="n" * 75))])
    assert difference(drawn, cut) > 1e-3


def test_rows_of_another_text_length_are_of_another_group(pipeline: Any) -> None:
    family = StableDiffusion(pipeline)
    groups = [
        family.group(order, family.encode(order))
        for order in (request("x" * 75), request("x" * 76), request("a cat", negative_prompt="n" * 100), request("dog"))
    ]
    assert groups == [77, 154, 154, 77]


@pytest.mark.parametrize(("prompt", "negative"), [("x" * 601, ""), ("a cat", "x" * 601)])
def test_prompt_beyond_eight_windows_is_refused_with_its_count(pipeline: Any, prompt: str, negative: str) -> None:
    family = StableDiffusion(pipeline)
    with pytest.raises(PermanentError, match=r"601 tokens; the model reads at most 600 \(8 windows of 75\)") as raised:
        family.encode(request(prompt, negative_prompt=negative))
    assert raised.value.code == "prompt-too-long"
    assert family.encode(request(prompt[:600], negative_prompt=negative[:600]))[0]["text"].shape[1] == 8 * 77


def test_negative_prompt_without_guidance_is_not_read(pipeline: Any) -> None:
    [positive] = StableDiffusion(pipeline).encode(request("a cat", negative_prompt="x" * 4000, guidance_scale=1.0))
    assert positive["text"].shape[1] == 77


# -- prediction types and schedulers

ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""As in checkpoints of Stable Diffusion 2 that draw black and white. Without rescaled betas it is Stable Diffusion 2's own."""


@pytest.mark.parametrize("config", [{}, {"prediction_type": "v_prediction"}, ZERO_SNR], ids=["epsilon", "v", "v, zero SNR"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_predicts_as_the_checkpoint_says(pipeline: Any, scheduler: str, config: dict[str, Any]) -> None:
    """Beside an unguided row with another scheduler, and in the stock pipeline alone."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    pipeline.scheduler = DDIMScheduler(**betas, **config)
    family, order = StableDiffusion(pipeline), request(scheduler=scheduler, negative_prompt="blurred", steps=5)
    other = request("a dog", scheduler="ddim", seed=8, guidance_scale=1.0)
    drawn = draw(family, [build_row(family, other), build_row(family, order)])[1]
    assert difference(drawn, stock_latents(pipeline, order)) < 1e-12


def test_prediction_type_changes_the_picture(pipeline: Any) -> None:
    family = StableDiffusion(pipeline)
    [epsilon] = draw(family, [build_row(family, request())])
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    [velocity] = draw(family, [build_row(family, request())])
    assert difference(epsilon, velocity) > 1e-2


@pytest.mark.parametrize(("steps", "strength", "first"), [(4, 0.7, 2), (10, 0.8, 2), (10, 1.0, 0), (3, 0.3, 3)])
def test_steps_of_a_picture_are_rounded_down(pipeline: Any, steps: int, strength: float, first: int) -> None:
    source = EditSource(InputPicture("RGB", 1, 1, bytes(3)), strength=strength)
    assert StableDiffusion(pipeline).first_step(request(steps=steps), source) == first


# -- ControlNet


def build_net(pipeline: Any, seed: int, **changes: Any) -> ControlNetModel:
    """A ControlNet of the pipeline's size with lively weights: those of a new one give zero."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 4, 8, 8), load_weights_from_unet=False)
    net.register_to_config(**changes)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    return net.to(torch.float64).eval()


def hint(seed: int) -> Pillow.Image:
    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Pillow.fromarray(pixels.numpy())


def controlled_row(family: Any, net: Any, order: ResolvedRequest, scale: float) -> DiffusionRow:
    picture = hint(order.seed)
    source = InputPicture("RGB", *picture.size, picture.tobytes())
    return build_row(family, order, control=ControlHint(net, family.control_hint(order, source), scale))


def stock_control(pipeline: Any, net: Any, order: ResolvedRequest, scale: float) -> torch.Tensor:
    stock = StableDiffusionControlNetPipeline(**pipeline.components, controlnet=net, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    more = {"image": hint(order.seed), "controlnet_conditioning_scale": scale, "prompt": order.prompt}
    return stock_latents(stock, order, **more)


def test_rows_of_one_call_follow_different_nets_at_different_scales(pipeline: Any) -> None:
    """The nets see their own rows alone; one pools its output and leaves the negative half alone; a row has none."""
    family, plain = StableDiffusion(pipeline), request("a dog", seed=7)
    nets = [build_net(pipeline, 1), build_net(pipeline, 2), build_net(pipeline, 3, global_pool_conditions=True)]
    orders = [
        (nets[0], request("one", seed=1), 0.7),
        (nets[1], request("two", seed=2, guidance_scale=1.0), 1.0),
        (nets[0], request("three", seed=3), 1.4),
        (nets[2], request("four", seed=4), 0.9),
    ]
    rows = [build_row(family, plain), *(controlled_row(family, *order) for order in orders)]
    drawn = draw(family, rows)
    assert difference(drawn[0], stock_latents(pipeline, plain)) < 1e-12
    for latents, (net, order, scale) in zip(drawn[1:], orders, strict=True):
        assert difference(latents, stock_control(pipeline, net, order, scale)) < 1e-12
        assert difference(latents, stock_latents(pipeline, order)) > 1e-3


# -- a checkpoint

UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "text width": ("unet", {"cross_attention_dim": 64}, "the text encoder gives 32 values a token, the UNet reads 64"),
    "instructions to change a picture": ("unet", {"in_channels": 8}, "the UNet reads 8 channels"),
    "latents of another VAE": ("vae", {"latent_channels": 16}, "the VAE has 16"),
    "no scale": ("vae", {"scaling_factor": 0}, "scaling_factor in vae/config.json is 0"),
    "distilled guidance": ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
}


@pytest.mark.parametrize(("part", "config", "words"), UNFIT.values(), ids=UNFIT)
def test_parts_of_different_models_are_found(pipeline: Any, part: str, config: dict[str, Any], words: str) -> None:
    StableDiffusion(pipeline).check()
    getattr(pipeline, part).register_to_config(**config)
    with pytest.raises(ValueError, match=words):
        StableDiffusion(pipeline).check()


def test_checkpoint_for_inpainting_is_known_by_its_channels(pipeline: Any) -> None:
    assert not StableDiffusion(pipeline).mask_beside
    pipeline.unet.register_to_config(in_channels=9)
    family = StableDiffusion(pipeline)
    family.check()
    assert family.mask_beside


def test_tokenizer_without_limit_gets_that_of_the_text_encoder(pipeline: Any) -> None:
    pipeline.tokenizer.model_max_length = 10**30
    StableDiffusion(pipeline).check()
    assert pipeline.tokenizer.model_max_length == 77


# -- LoRA


@pytest.mark.parametrize(
    ("part", "layer", "names"),
    [
        ("unet", "down_blocks.2.attentions.0.proj_in", {"input_blocks.5.1.proj_in"}),
        ("unet", "conv_in", {"input_blocks.0.0"}),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1", {"encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"}),
    ],
)
def test_layers_have_the_names_of_the_first_stable_diffusion(pipeline: Any, part: str, layer: str, names: set[str]) -> None:
    assert {alias.name for alias in StableDiffusion(pipeline).lora_aliases(part, layer)} == names
