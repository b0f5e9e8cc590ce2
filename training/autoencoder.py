"""The autoencoder of tiny-shapes: diffusers' tiny VAE, trained to draw sharp edges between the colours that the latents encode."""

from random import Random
from typing import Any

from training.latent_codes import CHANNELS, PIXELS_PER_LATENT, blend_colors, color_codes, color_palette
from training.scenes import COLOURS, SHAPES
from training.shape_masks import IMAGE_SIZE, coverage_mask, random_placement
from training.trainer import TrainingRun

CROP_SIZE = 192
"""Side of the training windows in pixels: the receptive field of the convolutions is no wider."""
BATCH, STEPS = 8, 1500
MAX_LATENT_SCALE = 3.0
"""With high guidance, latents are up to this multiple of their proper value."""


def build_autoencoder() -> Any:
    """Halves the side five times: a latent covers 32 × 32 pixels."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(8,) * 6, num_encoder_blocks=(1,) * 6,
        decoder_block_out_channels=(16,) * 6, num_decoder_blocks=(3, 2, 2, 1, 1, 1),
    )  # fmt: skip


def autoencoder_run(autoencoder: Any) -> TrainingRun:
    import torch

    names, codes, colours = list(SHAPES), color_codes(), color_palette()

    def example(rng: Random) -> tuple[Any, Any]:
        """The latents and pixels of a window."""
        shape, place = rng.choice(names), random_placement(rng)
        colour, ground = rng.sample(range(len(COLOURS)), 2)
        left, top = (PIXELS_PER_LATENT * rng.randrange((IMAGE_SIZE - CROP_SIZE) // PIXELS_PER_LATENT + 1) for _ in range(2))
        mask = coverage_mask(shape, place, 1, left=left, top=top, window_size=CROP_SIZE)[None]
        latent_mask = torch.nn.functional.avg_pool2d(mask, PIXELS_PER_LATENT)
        return blend_colors(latent_mask, codes[[colour]], codes[[ground]]), blend_colors(mask, colours[[colour]], colours[[ground]])

    def loss(rng: Random) -> Any:
        latents, pixels = (torch.cat(parts) for parts in zip(*(example(rng) for _ in range(BATCH)), strict=True))
        scale = torch.tensor([rng.uniform(0.8, MAX_LATENT_SCALE) for _ in range(BATCH)])[:, None, None, None]
        decoded = autoencoder.decoder(scale * latents + 0.1 * torch.randn_like(latents))
        return torch.nn.functional.l1_loss(decoded, pixels) + torch.nn.functional.mse_loss(autoencoder.encoder(pixels), latents)

    return TrainingRun("autoencoder", list(autoencoder.parameters()), loss, STEPS)
