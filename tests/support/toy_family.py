"""A model family that the product does not know, for IMAGE_FAMILIES: DiT, which draws one of 1000 classes in place of a text."""

from collections.abc import Sequence
from typing import Any

import torch

from actors.engines.diffusion.batching import Condition, DiffusionRow
from actors.engines.diffusion.families.family import Defaults, Family, stack
from actors.engines.diffusion.requests import ResolvedRequest

NO_CLASS = 1000


class ToyFamily(Family):
    """The class is the number of characters of the prompt."""

    name = "Toy"
    indexes = ("DiTPipeline",)
    loader = "DiTPipeline"
    parts = ("transformer", "vae", "scheduler")
    schedulers = ("ddim", "dpm++")
    defaults = Defaults(steps=4, guidance_scale=4.0, scheduler="ddim")
    edits = frozenset()

    def __init__(self, pipeline: Any) -> None:
        pipeline.vae_scale_factor = 8
        super().__init__(pipeline)

    def encode(self, request: ResolvedRequest) -> list[Condition]:
        classes = [NO_CLASS, len(request.prompt)] if self.is_guided(request) else [len(request.prompt)]
        return [{"class": torch.tensor([number])} for number in classes]

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> torch.Tensor:
        return self.denoiser(x, timestep=t, class_labels=stack(conditions, "class")).sample[:, : self.latent_channels]
