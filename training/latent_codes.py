"""The painter's latents: one of them stands for 32 × 32 pixels, its four numbers are the colour as a word of four bits.

Each bit is -1 or 1, so a guidance that overshoots changes no colour; between two colours stand mixtures, by the share that each covers.
"""

from typing import Any

from training.scenes import COLOURS

PIXELS_PER_LATENT = 32
CHANNELS = 4
CODE_BITS = ("+---", "++--", "+++-", "-+--", "--+-", "+-+-", "+-++", "----", "++++", "-+-+")
"""In the order of COLOURS."""


def color_codes() -> Any:
    """One row for each colour."""
    import torch

    return torch.tensor([[1.0 if bit == "+" else -1.0 for bit in bits] for bits in CODE_BITS])


def color_palette() -> Any:
    """The colours themselves, from -1 to 1, one row for each."""
    import torch

    return torch.tensor([rgb for _, rgb in COLOURS.values()], dtype=torch.float32) / 127.5 - 1


def blend_colors(mask: Any, shape_color: Any, background_color: Any) -> Any:
    """Shares of a shape (batch × h × w) and two colours (batch × channels) → batch × channels × h × w."""
    share = mask[:, None]
    return share * shape_color[:, :, None, None] + (1 - share) * background_color[:, :, None, None]
