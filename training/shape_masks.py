"""The shapes as areas: which share of each square of a picture lies within one. Drawn by their equations, at any size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

IMAGE_SIZE = 512
"""Pixels of a whole picture."""


@dataclass(frozen=True)
class ShapePlacement:
    """Where a shape lies: the middle and half of the height, in pixels of a whole picture."""

    x: float
    y: float
    half_height: float


def random_placement(rng: Random) -> ShapePlacement:
    half = rng.uniform(120, 190)
    room = IMAGE_SIZE / 2 - half - 30
    return ShapePlacement(IMAGE_SIZE / 2 + rng.uniform(-room, room), IMAGE_SIZE / 2 + rng.uniform(-room, room), half)


def centered_placement(rng: Random) -> ShapePlacement:
    """Much the same each time, so that a model spends nothing on where."""
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
    """The share of each square of `square` × `square` pixels that the shape covers, in a window of the picture.

    Counted on a grid with `fine` points to a pixel's side (below 1: one point for several pixels). A tensor of side/square × side/square.
    """
    import torch

    points = torch.arange(round(window_size * points_per_pixel)) / points_per_pixel + 0.5 / points_per_pixel
    y, x = torch.meshgrid(points + top, points + left, indexing="ij")
    inside = is_inside(shape, (x - placement.x) / placement.half_height, (y - placement.y) / placement.half_height).float()
    return torch.nn.functional.avg_pool2d(inside[None, None], round(cell_size * points_per_pixel))[0, 0]


def is_inside(shape: str, x: Any, y: Any) -> Any:
    """For points in units of half the shape's height, y downwards: whether they lie within it."""
    return SHAPE_EQUATIONS[shape](x, y)


def is_in_star(x: Any, y: Any) -> Any:
    """Five times the same wedge: within the line from its tip to its notch."""
    import torch

    fifth, tip, notch = 2 * math.pi / 5, 1.1, 0.45
    angle = (torch.remainder(torch.atan2(x, -y) + fifth / 2, fifth) - fifth / 2).abs()
    far = (x * x + y * y).sqrt()
    across, along = far * torch.sin(angle), far * torch.cos(angle)
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
