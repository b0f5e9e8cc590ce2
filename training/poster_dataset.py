"""The training posters of tiny-critic, drawn and preprocessed once before the training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

from training.posters import Poster, draw_poster

DATASET_SIZE = 5000
"""Posters of the training set; the evaluation draws others."""
TEXTLESS_SHARE = 0.4
"""The share of posters without text, such as the validate step gets."""


@dataclass(frozen=True)
class PosterExample:
    """`pixel_values`: 3 × side × side from the model's image processor, in half precision. The poster has no `pixels`."""

    pixel_values: Any
    poster: Poster


class PosterDataset:
    """`count` posters from one seed."""

    def __init__(self, processor: Any, count: int, seed: int) -> None:
        self._processor, self._count, self._dice = processor, count, Random(seed)

    @cached_property
    def examples(self) -> list[PosterExample]:
        return [self._example() for _ in range(self._count)]

    def _example(self) -> PosterExample:
        poster = draw_poster(self._dice, without_text=self._dice.random() < TEXTLESS_SHARE)
        pixel_values = self._processor.image_processor(poster.pixels, return_tensors="pt")["pixel_values"][0]
        return PosterExample(pixel_values.half(), replace(poster, pixels=None))

    def encode(self, vision_tower: Any) -> Any:
        """The vision tower's output: posters × patches × width, in half precision."""
        import torch

        chunks = [self.examples[start : start + 50] for start in range(0, len(self.examples), 50)]
        with torch.no_grad():
            return torch.cat([vision_tower(stack_pixels(chunk)).last_hidden_state[:, 1:].half() for chunk in chunks])


def stack_pixels(examples: Sequence[PosterExample]) -> Any:
    import torch

    return torch.stack([example.pixel_values for example in examples]).float()
