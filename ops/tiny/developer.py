"""The painter's autoencoder: the real class of a tiny VAE, trained to draw sharp edges between the colours that the latents name."""

from random import Random
from typing import Any

from ops.tiny.codes import CHANNELS, PIXELS, codes, mixed, palette
from ops.tiny.drawing import SIDE, any_place, cover
from ops.tiny.scenes import COLOURS, SHAPES
from ops.tiny.training import Course

WINDOW = 192
"""Pixels of the square windows that it learns from: convolutions see no further."""
BATCH, STEPS = 8, 1500
LOUDEST = 3.0
"""Latents come so many times as loud as they should be, when the guidance is high."""


def build_developer() -> Any:
    """Halves the side five times: a latent is 32 pixels wide."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(8,) * 6, num_encoder_blocks=(1,) * 6,
        decoder_block_out_channels=(16,) * 6, num_decoder_blocks=(3, 2, 2, 1, 1, 1),
    )  # fmt: skip


def course(developer: Any) -> Course:
    import torch

    names, bits, colours = list(SHAPES), codes(), palette()

    def example(dice: Random) -> tuple[Any, Any]:
        """A window's latents and its pixels."""
        shape, place = dice.choice(names), any_place(dice)
        colour, ground = dice.sample(range(len(COLOURS)), 2)
        left, top = (PIXELS * dice.randrange((SIDE - WINDOW) // PIXELS + 1) for _ in range(2))
        fine = cover(shape, place, 1, left=left, top=top, side=WINDOW)[None]
        rough = torch.nn.functional.avg_pool2d(fine, PIXELS)
        return mixed(rough, bits[[colour]], bits[[ground]]), mixed(fine, colours[[colour]], colours[[ground]])

    def loss(dice: Random) -> Any:
        latents, pixels = (torch.cat(parts) for parts in zip(*(example(dice) for _ in range(BATCH)), strict=True))
        loud = torch.tensor([dice.uniform(0.8, LOUDEST) for _ in range(BATCH)])[:, None, None, None]
        drawn = developer.decoder(loud * latents + 0.1 * torch.randn_like(latents))
        return torch.nn.functional.l1_loss(drawn, pixels) + torch.nn.functional.mse_loss(developer.encoder(pixels), latents)

    return Course("developer", list(developer.parameters()), loss, STEPS)
