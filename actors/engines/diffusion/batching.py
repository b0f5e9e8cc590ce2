"""Rows of one call of a denoiser: images that share a step, each with its own schedule, seed, guidance, adapters and kind of edit."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from actors.engines.diffusion.requests import ResolvedRequest
from actors.engines.process.device_time import DeviceTime

Condition = dict[str, Any]
"""What one half of a row is drawn after: name → tensor, 1 × …; lengths may differ from row to row where the family says so."""
RowAdapters = tuple[tuple[str, float], ...]
"""The adapters of a row, each with its scale; empty: the base model."""


@dataclass(eq=False)
class KeptPicture:
    """Inpainting: what stays, in the shape of the row's latents, packed. `mask`: 1 is drawn anew."""

    latents: Any
    noise: Any
    mask: Any


@dataclass(eq=False)
class ControlHint:
    """`net`: the ControlNet, whose calls are charged to its rows alone; `picture`: 1 × 3 × H × W."""

    net: Any
    picture: Any
    scale: float
    device_time: DeviceTime = field(default_factory=lambda: DeviceTime("cpu"))


@dataclass(eq=False)
class DiffusionRow:
    """One image being denoised. `latents` have a leading axis of 1; schedulers that add noise use `generator`.

    `conditions`: [negative, positive], or [positive] when it is not guided. `beside`: mask and masked latents, which denoisers for
    inpainting read beside the latents.
    """

    request_id: int
    image_index: int
    request: ResolvedRequest
    group: Hashable
    scheduler: Any
    timesteps: Any
    generator: Any
    latents: Any
    conditions: list[Condition]
    adapters: RowAdapters = ()
    kept: KeptPicture | None = None
    beside: Any = None
    control: ControlHint | None = None
    step_index: int = 0

    @property
    def done(self) -> bool:
        return self.step_index >= len(self.timesteps)

    @property
    def timestep(self) -> Any:
        return self.timesteps[self.step_index]


class Denoising(Protocol):
    """The part of a family that a step needs."""

    def denoise(self, x: Any, t: Any, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> Any: ...

    def guide(self, row: DiffusionRow, predictions: Any) -> Any: ...


class StepGroups:
    """Rows that may share a call form a group (same model and size); groups are scheduled round robin, one step each."""

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, list[DiffusionRow]] = OrderedDict()

    @property
    def rows(self) -> list[DiffusionRow]:
        return [row for group in self._groups.values() for row in group]

    def add(self, row: DiffusionRow) -> None:
        self._groups.setdefault(row.group, []).append(row)

    def next_group(self) -> list[DiffusionRow]:
        """The next group; it moves to the end of the round."""
        key, rows = next(iter(self._groups.items()))
        self._groups.move_to_end(key)
        return list(rows)

    def remove(self, predicate: Callable[[DiffusionRow], bool]) -> list[DiffusionRow]:
        """Remove the rows for which `predicate` holds, and return them."""
        removed = [row for row in self.rows if predicate(row)]
        for row in removed:
            self._groups[row.group].remove(row)
            if not self._groups[row.group]:
                del self._groups[row.group]
        return removed


def advance_rows(
    family: Denoising, rows: Sequence[DiffusionRow], set_row_adapters: Callable[[Sequence[RowAdapters] | None], None], max_rows: int
) -> None:
    """One step for each row, at most `max_rows` rows in one call.

    No row changes before all calls are made, so that a call that runs out of memory can be repeated.
    """
    predictions: list[Any] = []
    for start in range(0, len(rows), max_rows):
        predictions += predict(family, rows[start : start + max_rows], set_row_adapters)
    for row, prediction in zip(rows, predictions, strict=True):
        make_step(row, prediction)


def predict(family: Denoising, rows: Sequence[DiffusionRow], set_row_adapters: Callable[[Sequence[RowAdapters] | None], None]) -> list[Any]:
    """One call for all rows, each with its timestep and adapters. Guided rows are in it twice."""
    import torch

    halves = [(row, scaled, condition) for row in rows for scaled in [scale_input(row)] for condition in row.conditions]
    set_row_adapters([row.adapters for row, _, _ in halves])
    try:
        x = torch.cat([scaled for _, scaled, _ in halves])
        t = torch.stack([row.timestep for row, _, _ in halves]).to(x.device)
        predictions = family.denoise(x, t, [condition for _, _, condition in halves], [row for row, _, _ in halves])
    finally:
        set_row_adapters(None)
    parts = predictions.split([len(row.conditions) for row in rows])
    return [family.guide(row, part) for row, part in zip(rows, parts, strict=True)]


def scale_input(row: DiffusionRow) -> Any:
    """The latents as the denoiser reads them; schedulers of flow matching scale nothing."""
    scale = getattr(row.scheduler, "scale_model_input", None)
    return scale(row.latents, row.timestep) if scale else row.latents


def make_step(row: DiffusionRow, prediction: Any) -> None:
    """The row's next latents. Schedulers that add noise take it from the row's own generator; what an order keeps is put back."""
    extra = {"generator": row.generator} if takes_generator(row.scheduler.__class__) else {}
    row.latents = row.scheduler.step(prediction, row.timestep, row.latents, return_dict=False, **extra)[0]
    row.step_index += 1
    if row.kept:
        kept = row.kept.latents
        if not row.done:
            kept = add_noise(row.scheduler, kept, row.kept.noise, row.timesteps[row.step_index : row.step_index + 1])
        row.latents = (1 - row.kept.mask) * kept + row.kept.mask * row.latents


def add_noise(scheduler: Any, latents: Any, noise: Any, timestep: Any) -> Any:
    """`latents` with the noise of a timestep (1-d). Schedulers of flow matching take the arguments in another order."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(latents, timestep, noise)
    return scheduler.add_noise(latents, noise, timestep)


@cache
def takes_generator(scheduler: type) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters  # type: ignore[attr-defined]
