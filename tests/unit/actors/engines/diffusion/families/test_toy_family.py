"""A family is one class: a checkpoint that the product does not know is served by a model process with a family of under 40 lines."""

import asyncio
import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from actors.engines.diffusion.families.registry import find_family, import_family
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.diffusion.schedulers import build_scheduler
from actors.engines.diffusion.tiny_families import randomize_weights
from actors.engines.process.executor import ExecutionResult, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from actors.image import ENGINE_FACTORY
from tests.support import toy_family

# diffusers and numpy issue warnings about themselves.
pytestmark = [
    pytest.mark.models, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]  # fmt: skip

TOY = "tests.support.toy_family:ToyFamily"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DiT with random weights, of 64 × 64 pixels; as in the real one, its last channels are a learned variance."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8, patch_size=2
    )
    vae = AutoencoderKL(
        latent_channels=4, block_out_channels=(4, 4, 8, 8), norm_num_groups=2, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    for number, part in enumerate((transformer, vae)):
        randomize_weights(part.eval(), number)
    folder = tmp_path_factory.mktemp("toy") / "dit"
    DiTPipeline(transformer, vae, DDIMScheduler(beta_schedule="linear", clip_sample=False)).save_pretrained(folder)
    return folder


def draw_with_stock_pipeline(checkpoint: Path, request: DiffusionRequest) -> Any:
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(request.scheduler or "ddim", pipeline.scheduler.config)
    picture = pipeline(
        [len(request.prompt)], guidance_scale=request.guidance_scale, generator=torch.Generator().manual_seed(request.seed),
        num_inference_steps=request.steps, output_type="np",
    ).images[0]  # fmt: skip
    return (picture * 255).round().astype(int)


async def draw_together(settings: ImageSettings, requests: list[DiffusionRequest]) -> list[ExecutionResult]:
    async with open_executor(EngineSpec(ENGINE_FACTORY, settings), ExecutorSettings(), max_in_flight=8, capacity=8) as executor:
        await executor.ready()
        return await asyncio.gather(*map(executor.run, requests))


async def test_toy_family_is_served_by_a_model_process(checkpoint: Path) -> None:
    requests = [
        DiffusionRequest("a cat", seed=1, steps=6, guidance_scale=4.0),
        DiffusionRequest("a dog in the rain", seed=2, steps=30, guidance_scale=1.0, scheduler="dpm++"),
        DiffusionRequest("a house", seed=3, steps=25, guidance_scale=2.0),
    ]
    results = await draw_together(ImageSettings(model=str(checkpoint), families=[TOY], device="cpu"), requests)
    for request, result in zip(requests, results, strict=True):
        picture = np.asarray(Pillow.open(io.BytesIO(result.outputs[0]))).astype(int)
        assert np.abs(picture - draw_with_stock_pipeline(checkpoint, request)).max() <= 1
        assert (result.result.family, result.result.width) == ("Toy", 64)
    assert max(result.result.largest_batch for result in results) >= 2
    others = draw_with_stock_pipeline(checkpoint, DiffusionRequest("another class", seed=1, steps=6, guidance_scale=4.0))
    assert np.abs(np.asarray(Pillow.open(io.BytesIO(results[0].outputs[0]))).astype(int) - others).max() >= 20


def test_without_the_setting_the_checkpoint_is_refused_by_name(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"it is a DiTPipeline \(model_index.json\); this engine draws with Stable Diffusion, "):
        find_family("toy", checkpoint)
    assert find_family("toy", checkpoint, [TOY]) is toy_family.ToyFamily


def test_toy_family_has_under_40_lines() -> None:
    assert len(inspect.getsource(toy_family).splitlines()) < 40


@pytest.mark.parametrize("path", ["tests.support.toy_family:Missing", "no.such.module:Family", "tests.support.toy_family:stack", "nothing"])
def test_families_that_cannot_be_imported_are_named(path: str) -> None:
    with pytest.raises(ValueError, match="IMAGE_FAMILIES") as raised:
        import_family(path)
    assert path in str(raised.value)
