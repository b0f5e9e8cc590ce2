"""The latents of tiny-shapes: one covers 32 × 32 pixels, its four channels encode the colour as four bits.

Each bit is -1 or 1, so strong guidance changes no colour; where two colours meet, a latent is their mixture by covered area.
"""

from typing import Any

from training.scenes import COLOURS

PIXELS_PER_LATENT = 32
CHANNELS = 4
CODE_BITS = ("+---", "++--", "+++-", "-+--", "--+-", "+-+-", "+-++", "----", "++++", "-+-+")
"""In the order of COLOURS."""


def color_codes() -> Any:
    """A tensor of colours × channels."""
    import torch

    return torch.tensor([[1.0 if bit == "+" else -1.0 for bit in bits] for bits in CODE_BITS])


def color_palette() -> Any:
    """A tensor of colours × RGB, from -1 to 1."""
    import torch

    return torch.tensor([rgb for _, rgb in COLOURS.values()], dtype=torch.float32) / 127.5 - 1


def blend_colors(mask: Any, shape_color: Any, background_color: Any) -> Any:
    """Blends two colours (batch × channels) by a coverage mask (batch × h × w). Returns batch × channels × h × w."""
    share = mask[:, None]
    return share * shape_color[:, :, None, None] + (1 - share) * background_color[:, :, None, None]
