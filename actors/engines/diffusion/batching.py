"""Batching: diffusion rows that share a step though each goes its own way, and requests that wait a few milliseconds for company."""

import inspect
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

T = TypeVar("T")
BASE_MODEL = "base"
"""The name of no adapter."""


@dataclass(eq=False)
class DiffusionRow:
    """One picture on its way. `latents` and the embeddings have a leading axis of one; the generator feeds schedulers that add noise."""

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
        """As in the stock pipeline: at 1 and below there is no unconditional half."""
        return self.guidance_scale > 1.0

    @property
    def done(self) -> bool:
        return self.step_index >= len(self.timesteps)

    @property
    def timestep(self) -> Any:
        return self.timesteps[self.step_index]


class StepGroups:
    """Rows that may share a UNet call stand in one group (same model, same size); groups take turns, one step each."""

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, list[DiffusionRow]] = OrderedDict()

    @property
    def rows(self) -> list[DiffusionRow]:
        return [row for group in self._groups.values() for row in group]

    def add(self, row: DiffusionRow) -> None:
        self._groups.setdefault(row.group, []).append(row)

    def next_group(self) -> list[DiffusionRow]:
        """The group whose turn it is; it goes to the end of the round."""
        key, rows = next(iter(self._groups.items()))
        self._groups.move_to_end(key)
        return list(rows)

    def remove(self, predicate: Callable[[DiffusionRow], bool]) -> list[DiffusionRow]:
        """Take out the rows that `gone` names."""
        taken = [row for row in self.rows if predicate(row)]
        for row in taken:
            self._groups[row.group].remove(row)
            if not self._groups[row.group]:
                del self._groups[row.group]
        return taken


def advance_rows(
    rows: Sequence[DiffusionRow], predict: Callable[[Sequence[DiffusionRow], Sequence[Any]], list[Any]], max_rows: int
) -> None:
    """One step for each row. `predict` gives the noise of at most `limit` rows in one call.

    Nothing of a row changes before all noise is there: a call that fails for want of memory may simply be made again.
    """
    inputs = [row.scheduler.scale_model_input(row.latents, row.timestep) for row in rows]
    noise: list[Any] = []
    for start in range(0, len(rows), max_rows):
        noise += predict(rows[start : start + max_rows], inputs[start : start + max_rows])
    for row, guess in zip(rows, noise, strict=True):
        row.latents = scheduler_step(row, guess)
        row.step_index += 1


def scheduler_step(row: DiffusionRow, noise: Any) -> Any:
    """The scheduler's step; those that add noise take it from the row's own generator."""
    extra = {"generator": row.generator} if takes_generator(row.scheduler.__class__) else {}
    return row.scheduler.step(noise, row.timestep, row.latents, return_dict=False, **extra)[0]


@cache
def takes_generator(scheduler: type) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters  # type: ignore[attr-defined]


def predict_noise(
    unet: Any, rows: Sequence[DiffusionRow], inputs: Sequence[Any], set_row_adapters: Callable[[list[str] | None], None]
) -> list[Any]:
    """One UNet call for all rows: a timestep and an adapter per row; guided rows stand in it twice, their unconditional half first."""
    import torch

    doubled = [number for number, row in enumerate(rows) if row.guided]
    order = [*doubled, *range(len(rows))]
    embeddings = [rows[number].negative_prompt_embeds for number in doubled] + [row.prompt_embeds for row in rows]
    set_row_adapters([rows[number].adapter for number in order])
    noise = unet(
        torch.cat([inputs[number] for number in order]),
        torch.stack([rows[number].timestep for number in order]).to(inputs[0].device),
        encoder_hidden_states=torch.cat(embeddings),
        return_dict=False,
    )[0]
    set_row_adapters(None)
    halves = {number: noise[place : place + 1] for place, number in enumerate(doubled)}
    whole = [noise[len(doubled) + number : len(doubled) + number + 1] for number in range(len(rows))]
    return [
        halves[number] + row.guidance_scale * (whole[number] - halves[number]) if row.guided else whole[number] for number, row in enumerate(rows)
    ]  # fmt: skip


@dataclass(eq=False)
class QueuedItem(Generic[T]):
    item: T
    queued_at: float


class DynamicBatch(Generic[T]):
    """Compatible requests are held for `window_seconds`, or until `most` are together. For engines whose batch starts and ends at once."""

    def __init__(self, max_size: int, window_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_size, self.window, self.clock = max_size, window_seconds, clock
        self._held: OrderedDict[Hashable, list[QueuedItem[T]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, key: Hashable, item: T) -> None:
        """Only what has been found sound: one bad row fails a whole batch."""
        self._held.setdefault(key, []).append(QueuedItem(item, self.clock()))

    def drop(self, unwanted: Callable[[T], bool]) -> list[T]:
        dropped = [one.item for held in self._held.values() for one in held if unwanted(one.item)]
        for key in list(self._held):
            self._held[key] = [one for one in self._held[key] if not unwanted(one.item)]
            if not self._held[key]:
                del self._held[key]
        return dropped

    def wait_seconds(self) -> float | None:
        """Until the next batch is due; 0: now; None: nothing is held."""
        return min(map(self._due_in, self._held.values()), default=None)

    def take(self) -> list[T]:
        """The batch that has been due the longest. Empty: none is."""
        due = [key for key, held in self._held.items() if self._due_in(held) <= 0]
        if not due:
            return []
        key = min(due, key=lambda key: self._held[key][0].queued_at)
        held = self._held.pop(key)
        if held[self.max_size :]:
            self._held[key] = held[self.max_size :]
        return [one.item for one in held[: self.max_size]]

    def _due_in(self, held: list[QueuedItem[T]]) -> float:
        return 0.0 if len(held) >= self.max_size else max(0.0, held[0].queued_at + self.window - self.clock())
