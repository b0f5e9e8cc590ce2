"""How the rows of an order begin: with noise, or with a picture and noise.

A row's generator is drawn from in the order of the stock pipelines: the picture, the noise, the picture outside of the mask.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from actors.engines.diffusion.batching import Condition, ControlHint, DiffusionRow, KeptPicture, RowAdapters, add_noise
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.requests import EditSource, InputPicture, ResolvedRequest
from actors.engines.process.device_time import DeviceTime
from bus.errors import PermanentError


@dataclass(eq=False)
class RowStarter:
    """Builds the rows of one order; those of an edit in the thread of the VAE. `control_net`: the ControlNet that the order names."""

    request_id: int
    request: ResolvedRequest
    family: Family
    model_name: str
    conditions: list[Condition]
    adapters: RowAdapters
    control_net: Any = None
    device_time: DeviceTime = field(default_factory=lambda: DeviceTime("cpu"))
    _encoded: dict[bool, Any] = field(default_factory=dict)
    """What the VAE made of the order's picture, by whether it is masked: all images of the order start from the same."""

    def group(self, index: int) -> Hashable:
        """What an image must have in common with others to share their calls."""
        request = self.request
        shared = (self.model_name, request.height, request.width, self.family.group(request, self.conditions))
        return (*shared, self.request_id, index) if request.deterministic else shared

    def build_rows(self) -> list[DiffusionRow]:
        return [self._build_row(index) for index in range(self.request.count)]

    def _build_row(self, index: int) -> DiffusionRow:
        """The noise comes from a generator of the row on the CPU, so that it is the same on every device."""
        import torch

        request, family = self.request, self.family
        generator = torch.Generator().manual_seed((request.seed + index) % 2**63)
        scheduler = family.build_schedule(request)
        start = family.first_step(request, request.edit) * scheduler.order if request.edit else 0
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        row = DiffusionRow(
            self.request_id, index, request, self.group(index), scheduler, scheduler.timesteps[start:], generator, None, self.conditions,
            self.adapters,
        )  # fmt: skip
        if request.edit:
            self._start_from_picture(row, request.edit)
        else:
            row.latents = family.pack(family.draw_noise(request, generator)) * noise_sigma(scheduler)
        if request.control:
            hint = family.control_hint(request, request.control.image)
            row.control = ControlHint(self.control_net, hint, request.control.scale, self.device_time)
        return row

    def _encode(self, image: InputPicture, mask: InputPicture | None = None) -> Any:
        masked = mask is not None
        if masked not in self._encoded:
            self._encoded[masked] = self.family.encode_picture(self.request, image, mask)
        return self._encoded[masked]

    def _start_from_picture(self, row: DiffusionRow, edit: EditSource) -> None:
        import torch

        request, family = self.request, self.family
        noise_only = edit.mask is not None and family.starts_from_noise(edit)
        picture = None
        if not (noise_only and family.mask_beside):
            picture = family.sample_latents(self._encode(edit.image), row.generator)
        noise = family.draw_noise(request, row.generator)
        sigma = noise_sigma(row.scheduler)
        row.latents = family.pack(noise * sigma if noise_only else add_noise(row.scheduler, picture, noise, row.timesteps[:1]))
        if edit.mask is None:
            return
        masked = family.sample_latents(self._encode(edit.image, edit.mask), row.generator)  # drawn also where it is not used
        mask = family.latent_mask(request, edit.mask)
        if not bool(mask.any()):
            raise PermanentError("mask-empty", "What the mask says to draw anew is too small for the model: paint at least 8 × 8 pixels.")
        if family.mask_beside:
            row.beside = torch.cat([mask, masked], dim=1)
        else:
            row.kept = KeptPicture(family.pack(picture), family.pack(noise), mask)


def noise_sigma(scheduler: Any) -> Any:
    """The standard deviation of the first latents; schedulers of flow matching have 1."""
    return getattr(scheduler, "init_noise_sigma", 1.0)
