"""Posters as the critic sees them: drawn once, before it learns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

from ops.tiny.posters import Poster, draw_poster

POOL = 5000
"""Posters that are drawn beforehand; the examination draws others."""
BARE = 0.4
"""The share of pictures without text: the validate step sees them so."""


@dataclass(frozen=True)
class Example:
    """`shown`: 3 × side × side, as the model's processor makes it, in half precision."""

    shown: Any
    poster: Poster


class Gallery:
    """`count` posters of one seed."""

    def __init__(self, processor: Any, count: int, seed: int) -> None:
        self._processor, self._count, self._dice = processor, count, Random(seed)

    @cached_property
    def examples(self) -> list[Example]:
        return [self._example() for _ in range(self._count)]

    def _example(self) -> Example:
        poster = draw_poster(self._dice, bare=self._dice.random() < BARE)
        shown = self._processor.image_processor(poster.pixels, return_tensors="pt")["pixel_values"][0]
        return Example(shown.half(), replace(poster, pixels=None))

    def seen(self, tower: Any) -> Any:
        """What the eye says of each poster: posters × patches × width, in half precision."""
        import torch

        some = range(0, len(self.examples), 50)
        with torch.no_grad():
            return torch.cat([tower(shown(self.examples[at : at + 50])).last_hidden_state[:, 1:].half() for at in some])


def shown(examples: Sequence[Example]) -> Any:
    import torch

    return torch.stack([one.shown for one in examples]).float()
