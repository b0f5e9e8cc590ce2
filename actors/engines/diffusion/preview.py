"""Previews while an image is denoised: a linear map from latents to colours, fitted to the model's own VAE when it is loaded.

Latents are an encoder's view of small squares, and their mean colour is nearly a linear function of them, whatever the family.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import structlog
import torch
from PIL import Image

if TYPE_CHECKING:
    from actors.engines.diffusion.families.family import Family

log = structlog.get_logger()

FIT_LATENTS = 16
"""Side of the pictures that the map is fitted to, in latents."""
FIT_PICTURES = 8
RIDGE = 1e-3
"""Keeps the map small along directions of the latents that smooth pictures do not reach."""
PREVIEW_SIDE = 96
PREVIEW_QUALITY = 60


@dataclass(frozen=True)
class PreviewMap:
    """`weights`: C × 3, `offset`: 3; colours are in -1…1."""

    weights: torch.Tensor
    offset: torch.Tensor

    def colors(self, latents: torch.Tensor) -> torch.Tensor:
        """h × w × 3, in -1…1. `latents`: unpacked, in the denoiser's range."""
        return torch.einsum("chw,cr->hwr", to_plane(latents).float().cpu(), self.weights) + self.offset

    def jpeg(self, latents: torch.Tensor, side: int = PREVIEW_SIDE) -> bytes:
        """A JPEG whose longer side is at most `side` pixels."""
        pixels = ((self.colors(latents) / 2 + 0.5).clamp(0, 1) * 255).nan_to_num(0).to(torch.uint8).numpy()
        image = Image.fromarray(pixels)
        image.thumbnail((side, side))
        file = BytesIO()
        image.save(file, format="JPEG", quality=PREVIEW_QUALITY)
        return file.getvalue()


def fit_preview(family: "Family") -> PreviewMap | None:
    """The map of a loaded model, by least squares. None, with a warning in the log, when its VAE gives values that are no numbers."""
    side = FIT_LATENTS * family.vae_scale
    with torch.inference_mode():
        pairs = [(encode(family, picture), shrink(picture)) for picture in smooth_pictures(side, FIT_PICTURES)]
    latents, colors = (torch.cat(rows).double() for rows in zip(*pairs, strict=True))
    if not bool(latents.isfinite().all()):
        log.warning("preview.unavailable", family=family.name, cause="the VAE encodes a picture as values that are not finite")
        return None
    mean_latent, mean_color = latents.mean(0), colors.mean(0)
    centred = latents - mean_latent
    covariance = centred.T @ centred / len(centred)
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    weights = torch.linalg.lstsq(covariance + ridge, centred.T @ (colors - mean_color) / len(centred)).solution
    return PreviewMap(weights.float(), (mean_color - mean_latent @ weights).float())


def encode(family: "Family", picture: torch.Tensor) -> torch.Tensor:
    """A picture's latents in the denoiser's range, one row for each: h·w × C. `picture`: 1 × 3 × H × W."""
    vae = family.pipeline.vae
    encoded = vae.encode(family.to_frame(picture).to(device=vae.device, dtype=vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return to_plane(family.scale_latents(latents)).float().cpu().flatten(1).T


def to_plane(latents: torch.Tensor) -> torch.Tensor:
    """C × h × w of 1 × C × h × w, and of the latents of a video with one frame, 1 × C × 1 × h × w."""
    return latents[0, :, 0] if latents.dim() == 5 else latents[0]


def shrink(picture: torch.Tensor) -> torch.Tensor:
    """The mean colours of the squares that one latent stands for: h·w × 3."""
    return torch.nn.functional.adaptive_avg_pool2d(picture, FIT_LATENTS)[0].flatten(1).T


def smooth_pictures(side: int, count: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Generated pictures of slow changes of colour, 1 × 3 × side × side, in -1…1: waves of random direction, length and colour."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    for _ in range(count):
        picture = np.zeros((3, side, side))
        for _ in range(3):
            angle, waves, phase = random.uniform(0, 2 * np.pi), random.uniform(0.3, 2.5), random.uniform(0, 2 * np.pi)
            wave = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + phase)
            picture += random.uniform(-1, 1, (3, 1, 1)) * wave
        picture += random.uniform(-0.5, 0.5, (3, 1, 1))
        yield torch.from_numpy(np.clip(picture, -1, 1)).float()[None]
