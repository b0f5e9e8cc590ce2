"""Coverage masks of the shapes: the share of each cell of an image that lies within one. Computed from equations, at any size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

IMAGE_SIZE = 512
"""Side of an image in pixels."""


@dataclass(frozen=True)
class ShapePlacement:
    """The centre of a shape and half of its height, in pixels of the image."""

    x: float
    y: float
    half_height: float


def random_placement(rng: Random) -> ShapePlacement:
    half = rng.uniform(120, 190)
    margin = IMAGE_SIZE / 2 - half - 30
    return ShapePlacement(IMAGE_SIZE / 2 + rng.uniform(-margin, margin), IMAGE_SIZE / 2 + rng.uniform(-margin, margin), half)


def centered_placement(rng: Random) -> ShapePlacement:
    """Nearly the same each time, so that a model need not learn positions."""
    return ShapePlacement(IMAGE_SIZE / 2 + rng.uniform(-20, 20), IMAGE_SIZE / 2 + rng.uniform(-20, 20), rng.uniform(150, 180))


def coverage_mask(
    shape: str,
    placement: ShapePlacement,
    cell_size: int,
    *,
    left: int = 0,
    top: int = 0,
    window_size: int = IMAGE_SIZE,
    points_per_pixel: float = 2,
) -> Any:
    """The share of each cell of `cell_size` × `cell_size` pixels that the shape covers, in a window of the image.

    Counted on a grid with `points_per_pixel` points along a pixel's side; below 1, a point stands for several pixels.
    Returns a square tensor of `window_size / cell_size` rows.
    """
    import torch

    points = torch.arange(round(window_size * points_per_pixel)) / points_per_pixel + 0.5 / points_per_pixel
    y, x = torch.meshgrid(points + top, points + left, indexing="ij")
    inside = is_inside(shape, (x - placement.x) / placement.half_height, (y - placement.y) / placement.half_height).float()
    return torch.nn.functional.avg_pool2d(inside[None, None], round(cell_size * points_per_pixel))[0, 0]


def is_inside(shape: str, x: Any, y: Any) -> Any:
    """Whether points lie within the shape. Units of half the shape's height, y downwards."""
    return SHAPE_EQUATIONS[shape](x, y)


def is_in_star(x: Any, y: Any) -> Any:
    """Five equal wedges, each bounded by the line from its tip to its notch."""
    import torch

    fifth, tip, notch = 2 * math.pi / 5, 1.1, 0.45
    angle = (torch.remainder(torch.atan2(x, -y) + fifth / 2, fifth) - fifth / 2).abs()
    radius = (x * x + y * y).sqrt()
    across, along = radius * torch.sin(angle), radius * torch.cos(angle)
    notch_along, notch_across = notch * math.cos(fifth / 2), notch * math.sin(fifth / 2)
    return (notch_along - tip) * across - notch_across * (along - tip) >= 0


def is_in_heart(x: Any, y: Any) -> Any:
    x, y = 1.15 * x, 0.1 - 1.15 * y
    return (x * x + y * y - 0.75) ** 3 - 1.2 * x * x * y**3 <= 0


SHAPE_EQUATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "circle": lambda x, y: x * x + y * y <= 1,
    "square": lambda x, y: (x.abs() <= 0.88) & (y.abs() <= 0.88),
    "triangle": lambda x, y: (y <= 0.8) & (y >= 1.8 * x.abs() - 1),
    "diamond": lambda x, y: 1.35 * x.abs() + y.abs() <= 1.05,
    "star": is_in_star,
    "heart": is_in_heart,
    "cross": lambda x, y: ((x.abs() <= 0.32) & (y.abs() <= 1)) | ((y.abs() <= 0.32) & (x.abs() <= 1)),
    "ring": lambda x, y: (x * x + y * y <= 1) & (x * x + y * y >= 0.33),
    "moon": lambda x, y: (x * x + y * y <= 1) & ((x - 0.45) ** 2 + y * y > 0.62),
    "hexagon": lambda x, y: (y.abs() <= 0.87) & (0.87 * x.abs() + 0.5 * y.abs() <= 0.87),
}
