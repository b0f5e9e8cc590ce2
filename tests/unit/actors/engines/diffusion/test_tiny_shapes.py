"""The trained tiny checkpoint in the real engine: a wrong scheduler, prompt or LoRA shows in the colors of the image."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest, EditSource, InputPicture, LoraFile
from actors.engines.diffusion.schedulers import build_scheduler
from ops.local.tiny_models import TINY_DIFFUSION
from tests.support.engine_fixture import StockPipeline, draw_images, max_pixel_difference, open_image_engine
from training.evaluate_shapes import detect_scene, expected_scene, sample_scenes
from training.scenes import Scene

# A warning of diffusers, which makes an array of a tensor when timesteps are spaced from the end.
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

RED_ON_BLUE = "a red circle on a blue background"


@pytest.fixture
def image_engine(tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[DiffusionEngine]:
    engine = open_image_engine({"tiny-sd": tiny_models[TINY_DIFFUSION]}, tmp_path / "shm")
    yield engine
    engine.close()


def make_request(number: int, prompt: str, **changes: object) -> DiffusionRequest:
    return DiffusionRequest(**({"prompt": prompt, "seed": number, "steps": 20, "width": 512, "height": 512} | changes))  # type: ignore[arg-type]


def detected_colors(engine: DiffusionEngine, requests: dict[int, DiffusionRequest]) -> dict[int, tuple[str | None, str]]:
    """The colors of shape and background of each request's first image."""
    scenes = {number: detect_scene(images[0]) for number, images in draw_images(engine, requests).items()}
    return {number: (scene.colour, scene.ground) for number, scene in scenes.items()}


def expected_colors(scene: Scene) -> tuple[str | None, str]:
    return scene.colour, scene.ground


@pytest.mark.parametrize("prompt", [RED_ON_BLUE, "파란 배경에 빨간 원"])
def test_most_seeds_match_prompt_colors(image_engine: DiffusionEngine, prompt: str) -> None:
    colors = detected_colors(image_engine, {seed: make_request(seed, prompt) for seed in range(1, 11)})
    assert list(colors.values()).count(("red", "blue")) >= 9, colors


def test_mixed_scenes_in_one_batch_are_correct(image_engine: DiffusionEngine) -> None:
    scenes = dict(enumerate(sample_scenes(20, seed=4), start=1))
    colors = detected_colors(image_engine, {number: make_request(number, caption) for number, (_, caption) in scenes.items()})
    assert sum(colors[number] == expected_colors(scene) for number, (scene, _) in scenes.items()) >= 18, colors


@pytest.mark.parametrize("scheduler", ["dpm++", "euler", "ddim", "unipc"])
def test_every_scheduler_yields_correct_colors(image_engine: DiffusionEngine, scheduler: str) -> None:
    colors = detected_colors(image_engine, {seed: make_request(seed, RED_ON_BLUE, scheduler=scheduler, steps=30) for seed in range(1, 5)})
    assert list(colors.values()).count(("red", "blue")) >= 3, colors


def test_each_row_of_a_batch_has_the_style_of_its_own_lora(image_engine: DiffusionEngine, tiny_models: dict[str, Path]) -> None:
    """All in one batch: plain, ink and night."""
    scene = Scene("star", "yellow", "purple")
    styles = [None, "ink", "night"] * 3
    requests = {
        number: make_request(number, scene.captions[0], loras=(lora(tiny_models, style),) if style else ())
        for number, style in enumerate(styles, start=1)
    }
    colors = detected_colors(image_engine, requests)
    right = [colors[number] == expected_colors(expected_scene(scene, style)) for number, style in enumerate(styles, start=1)]
    assert sum(right) >= 8, colors


def lora(tiny: dict[str, Path], style: str) -> LoraFile:
    file = tiny[f"tiny-{style}"]
    return LoraFile(file, hashlib.sha256(file.read_bytes()).hexdigest(), 1.0, style)


def test_image_matches_stock_pipeline(image_engine: DiffusionEngine, tiny_models: dict[str, Path]) -> None:
    request = make_request(3, RED_ON_BLUE)
    expected = StockPipeline(tiny_models[TINY_DIFFUSION]).draw(request)
    assert max_pixel_difference(draw_images(image_engine, {1: request})[1], expected) <= 1


def test_edit_matches_stock_pipeline(image_engine: DiffusionEngine, tiny_models: dict[str, Path]) -> None:
    """The checkpoint's autoencoder is an AutoencoderTiny, which encodes to latents without a distribution."""
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline

    stock = StockPipeline(tiny_models[TINY_DIFFUSION])
    stock.pipeline.scheduler = build_scheduler("ddim", stock.config)
    pipeline = StableDiffusionImg2ImgPipeline(**stock.pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (256, 256), (255, 0, 0))
    expected = pipeline(
        RED_ON_BLUE, picture, strength=0.7, num_inference_steps=10, guidance_scale=7.5, generator=torch.Generator().manual_seed(3)
    ).images
    source = EditSource(InputPicture("RGB", *picture.size, picture.tobytes()), strength=0.7)
    fields = {"steps": 10, "width": 256, "height": 256, "guidance_scale": 7.5, "scheduler": "ddim", "edit": source}
    drawn = draw_images(image_engine, {1: make_request(3, RED_ON_BLUE, **fields)})[1]
    assert max_pixel_difference(drawn, [np.asarray(image).astype(int) for image in expected]) <= 1


def test_image_size_not_multiple_of_latent_is_cropped(image_engine: DiffusionEngine) -> None:
    """A latent is 32 pixels wide in this checkpoint."""
    images = draw_images(image_engine, {1: make_request(1, RED_ON_BLUE, width=520, height=392)})[1]
    assert images[0].shape == (392, 520, 3)
