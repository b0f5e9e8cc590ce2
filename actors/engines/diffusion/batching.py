"""Rows of one UNet call: images that share a denoising step, each with its own schedule, seed, guidance and adapter."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

BASE_MODEL = "base"
"""Stands for no adapter."""


@dataclass(eq=False)
class DiffusionRow:
    """One image being denoised. `latents` and the embeddings are tensors a leading axis of 1; schedulers that add noise use `generator`."""

    request_id: int
    image_index: int
    group: Hashable
    scheduler: Any
    timesteps: Any
    generator: Any
    latents: Any
    prompt_embeds: Any
    negative_prompt_embeds: Any
    guidance_scale: float
    adapter: str = BASE_MODEL
    step_index: int = 0

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half: as in the stock pipeline, above a guidance scale of 1."""
        return self.guidance_scale > 1.0

    @property
    def done(self) -> bool:
        return self.step_index >= len(self.timesteps)

    @property
    def timestep(self) -> Any:
        return self.timesteps[self.step_index]


class StepGroups:
    """Rows that may share a UNet call form a group (same model and size); groups are scheduled round robin, one step each."""

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
    rows: Sequence[DiffusionRow], predict: Callable[[Sequence[DiffusionRow], Sequence[Any]], list[Any]], max_rows: int
) -> None:
    """One step for each row. `predict` gives the noise of at most `max_rows` rows in one call.

    No row changes before all noise is predicted, so that a call that runs out of memory can be repeated.
    """
    inputs = [row.scheduler.scale_model_input(row.latents, row.timestep) for row in rows]
    noise: list[Any] = []
    for start in range(0, len(rows), max_rows):
        noise += predict(rows[start : start + max_rows], inputs[start : start + max_rows])
    for row, row_noise in zip(rows, noise, strict=True):
        row.latents = scheduler_step(row, row_noise)
        row.step_index += 1


def scheduler_step(row: DiffusionRow, noise: Any) -> Any:
    """The row's next latents. Schedulers that add noise take it from the row's own generator."""
    extra = {"generator": row.generator} if takes_generator(row.scheduler.__class__) else {}
    return row.scheduler.step(noise, row.timestep, row.latents, return_dict=False, **extra)[0]


@cache
def takes_generator(scheduler: type) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters  # type: ignore[attr-defined]


def predict_noise(
    unet: Any, rows: Sequence[DiffusionRow], inputs: Sequence[Any], set_row_adapters: Callable[[list[str] | None], None]
) -> list[Any]:
    """One UNet call for all rows, each with its timestep and adapter. Guided rows are in it twice, the unconditional halves first."""
    import torch

    guided = [number for number, row in enumerate(rows) if row.guided]
    order = [*guided, *range(len(rows))]
    embeddings = [rows[number].negative_prompt_embeds for number in guided] + [row.prompt_embeds for row in rows]
    set_row_adapters([rows[number].adapter for number in order])
    noise = unet(
        torch.cat([inputs[number] for number in order]),
        torch.stack([rows[number].timestep for number in order]).to(inputs[0].device),
        encoder_hidden_states=torch.cat(embeddings),
        return_dict=False,
    )[0]
    set_row_adapters(None)
    unconditional = {number: noise[place : place + 1] for place, number in enumerate(guided)}
    conditional = noise[len(guided) :].split(1)
    return [
        unconditional[number] + row.guidance_scale * (conditional[number] - unconditional[number]) if row.guided else conditional[number]
        for number, row in enumerate(rows)
    ]
