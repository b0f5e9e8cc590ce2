"""The painter's autoencoder: the real class of a tiny VAE, trained to draw sharp edges between the colours that the latents name."""

from random import Random
from typing import Any

from training.latent_codes import CHANNELS, PIXELS_PER_LATENT, blend_colors, color_codes, color_palette
from training.scenes import COLOURS, SHAPES
from training.shape_masks import IMAGE_SIZE, coverage_mask, random_placement
from training.trainer import TrainingRun

CROP_SIZE = 192
"""Pixels of the square windows that it learns from: convolutions see no further."""
BATCH, STEPS = 8, 1500
MAX_LATENT_SCALE = 3.0
"""Latents come so many times as loud as they should be, when the guidance is high."""


def build_autoencoder() -> Any:
    """Halves the side five times: a latent is 32 pixels wide."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(8,) * 6, num_encoder_blocks=(1,) * 6,
        decoder_block_out_channels=(16,) * 6, num_decoder_blocks=(3, 2, 2, 1, 1, 1),
    )  # fmt: skip


def autoencoder_run(autoencoder: Any) -> TrainingRun:
    import torch

    names, bits, colours = list(SHAPES), color_codes(), color_palette()

    def example(dice: Random) -> tuple[Any, Any]:
        """A window's latents and its pixels."""
        shape, place = dice.choice(names), random_placement(dice)
        colour, ground = dice.sample(range(len(COLOURS)), 2)
        left, top = (PIXELS_PER_LATENT * dice.randrange((IMAGE_SIZE - CROP_SIZE) // PIXELS_PER_LATENT + 1) for _ in range(2))
        fine = coverage_mask(shape, place, 1, left=left, top=top, window_size=CROP_SIZE)[None]
        rough = torch.nn.functional.avg_pool2d(fine, PIXELS_PER_LATENT)
        return blend_colors(rough, bits[[colour]], bits[[ground]]), blend_colors(fine, colours[[colour]], colours[[ground]])

    def loss(dice: Random) -> Any:
        latents, pixels = (torch.cat(parts) for parts in zip(*(example(dice) for _ in range(BATCH)), strict=True))
        loud = torch.tensor([dice.uniform(0.8, MAX_LATENT_SCALE) for _ in range(BATCH)])[:, None, None, None]
        drawn = autoencoder.decoder(loud * latents + 0.1 * torch.randn_like(latents))
        return torch.nn.functional.l1_loss(drawn, pixels) + torch.nn.functional.mse_loss(autoencoder.encoder(pixels), latents)

    return TrainingRun("developer", list(autoencoder.parameters()), loss, STEPS)
