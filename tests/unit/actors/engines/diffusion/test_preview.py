"""Previews show the picture that latents stand for, by a map that is fitted to the VAE of the loaded model."""

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.families.registry import find_family
from actors.engines.diffusion.preview import PreviewMap, fit_preview, shrink, smooth_pictures, to_plane
from actors.engines.diffusion.tiny_families import write_tiny_family

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]


@pytest.fixture(scope="module", params=["tiny-sd15", "tiny-sdxl", "tiny-sd3", "tiny-flux", "tiny-qwen-image", "tiny-z-image"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("models") / request.param
    write_tiny_family(request.param, folder)
    kind = find_family(request.param, folder)
    return kind(kind.load(str(folder), torch.float32))


def test_the_map_is_the_inverse_of_an_encoder_that_mixes_colours(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder whose latents are the mean colours of squares, mixed, in the layout and the range of the family's VAE."""
    vae, scale = family.pipeline.vae, family.vae_scale
    mix = torch.randn(3, family.latent_channels, generator=torch.Generator().manual_seed(1))

    def encode_colors(frame: torch.Tensor) -> Any:
        plane = frame[:, :, 0] if frame.dim() == 5 else frame
        latents = torch.einsum("bchw,cd->bdhw", torch.nn.functional.avg_pool2d(plane, scale), mix)
        return SimpleNamespace(latents=latents[:, :, None] if frame.dim() == 5 else latents)

    monkeypatch.setattr(vae, "encode", encode_colors)
    preview = fit_preview(family)
    assert preview is not None
    for picture in smooth_pictures(16 * scale, 2, seed=1):
        latents = family.scale_latents(vae.encode(family.to_frame(picture)).latents)
        assert torch.allclose(preview.colors(latents).flatten(0, 1), shrink(picture), atol=0.05)


def test_a_preview_is_a_small_jpeg_of_unpacked_latents(family: Family) -> None:
    preview = fit_preview(family)
    assert preview is not None
    with torch.inference_mode():
        picture = next(smooth_pictures(16 * family.vae_scale, 1, seed=2))
        latents = family.scale_latents(family.pipeline.vae.encode(family.to_frame(picture)).latent_dist.mode())
    shown = Image.open(BytesIO(preview.jpeg(latents, side=8)))
    assert (shown.format, shown.size, shown.mode) == ("JPEG", (8, 8), "RGB")
    assert preview.colors(latents).shape == (16, 16, 3)


def test_colours_are_a_linear_function_of_the_latents() -> None:
    preview = PreviewMap(torch.eye(4)[:, :3], torch.tensor([0.0, 0.0, 1.0]))
    latents = torch.zeros(1, 4, 2, 3)
    latents[0, 0, 0, 0] = 1
    pixels = np.asarray(Image.open(BytesIO(preview.jpeg(latents))))
    assert pixels.shape == (2, 3, 3)
    assert torch.equal(preview.colors(latents)[0, 0], torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(preview.colors(latents)[1, 2], torch.tensor([0.0, 0.0, 1.0]))


def test_latents_of_one_frame_are_a_plane() -> None:
    assert to_plane(torch.zeros(1, 16, 1, 4, 5)).shape == (16, 4, 5)
    assert to_plane(torch.zeros(1, 4, 4, 5)).shape == (4, 4, 5)


def test_values_that_are_no_numbers_give_a_preview_without_an_error() -> None:
    latents = torch.full((1, 4, 8, 8), torch.nan)
    assert PreviewMap(torch.ones(4, 3), torch.zeros(3)).jpeg(latents).startswith(b"\xff\xd8")


def test_a_vae_that_gives_no_numbers_leaves_previews_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_family("tiny-sd15", tmp_path / "model")
    kind = find_family("model", tmp_path / "model")
    family = kind(kind.load(str(tmp_path / "model"), torch.float32))

    def encode_nothing(frame: torch.Tensor) -> Any:
        return SimpleNamespace(latents=torch.full((1, 4, 16, 16), torch.nan))

    monkeypatch.setattr(family.pipeline.vae, "encode", encode_nothing)
    assert fit_preview(family) is None
