"""Posters as the critic sees them: drawn once, before it learns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

from training.posters import Poster, draw_poster

DATASET_SIZE = 5000
"""Posters that are drawn beforehand; the examination draws others."""
TEXTLESS_SHARE = 0.4
"""The share of pictures without text: the validate step sees them so."""


@dataclass(frozen=True)
class PosterExample:
    """`shown`: 3 × side × side, as the model's processor makes it, in half precision."""

    pixel_values: Any
    poster: Poster


class PosterDataset:
    """`count` posters of one seed."""

    def __init__(self, processor: Any, count: int, seed: int) -> None:
        self._processor, self._count, self._dice = processor, count, Random(seed)

    @cached_property
    def examples(self) -> list[PosterExample]:
        return [self._example() for _ in range(self._count)]

    def _example(self) -> PosterExample:
        poster = draw_poster(self._dice, without_text=self._dice.random() < TEXTLESS_SHARE)
        shown = self._processor.image_processor(poster.pixels, return_tensors="pt")["pixel_values"][0]
        return PosterExample(shown.half(), replace(poster, pixels=None))

    def encode(self, vision_tower: Any) -> Any:
        """What the eye says of each poster: posters × patches × width, in half precision."""
        import torch

        some = range(0, len(self.examples), 50)
        with torch.no_grad():
            return torch.cat([vision_tower(stack_pixels(self.examples[at : at + 50])).last_hidden_state[:, 1:].half() for at in some])


def stack_pixels(examples: Sequence[PosterExample]) -> Any:
    import torch

    return torch.stack([one.pixel_values for one in examples]).float()
