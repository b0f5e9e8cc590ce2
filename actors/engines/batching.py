"""Batching: diffusion rows that share a step though each goes its own way, and requests that wait a few milliseconds for company."""

import inspect
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

T = TypeVar("T")
BASE = "base"
"""The name of no adapter."""


@dataclass(eq=False)
class Row:
    """One picture on its way. `latents` and the embeddings have a leading axis of one; the generator feeds schedulers that add noise."""

    ticket: int
    index: int
    group: Hashable
    scheduler: Any
    timesteps: Any
    generator: Any
    latents: Any
    positive: Any
    negative: Any
    guidance: float
    adapter: str = BASE
    at: int = 0

    @property
    def guided(self) -> bool:
        """As in the stock pipeline: at 1 and below there is no unconditional half."""
        return self.guidance > 1.0

    @property
    def done(self) -> bool:
        return self.at >= len(self.timesteps)

    @property
    def timestep(self) -> Any:
        return self.timesteps[self.at]


class StepGroups:
    """Rows that may share a UNet call stand in one group (same model, same size); groups take turns, one step each."""

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, list[Row]] = OrderedDict()

    @property
    def rows(self) -> list[Row]:
        return [row for group in self._groups.values() for row in group]

    def add(self, row: Row) -> None:
        self._groups.setdefault(row.group, []).append(row)

    def next_group(self) -> list[Row]:
        """The group whose turn it is; it goes to the end of the round."""
        key, rows = next(iter(self._groups.items()))
        self._groups.move_to_end(key)
        return list(rows)

    def remove(self, gone: Callable[[Row], bool]) -> list[Row]:
        """Take out the rows that `gone` names."""
        taken = [row for row in self.rows if gone(row)]
        for row in taken:
            self._groups[row.group].remove(row)
            if not self._groups[row.group]:
                del self._groups[row.group]
        return taken


def advance(rows: Sequence[Row], predict: Callable[[Sequence[Row], Sequence[Any]], list[Any]], limit: int) -> None:
    """One step for each row. `predict` gives the noise of at most `limit` rows in one call.

    Nothing of a row changes before all noise is there: a call that fails for want of memory may simply be made again.
    """
    inputs = [row.scheduler.scale_model_input(row.latents, row.timestep) for row in rows]
    noise: list[Any] = []
    for start in range(0, len(rows), limit):
        noise += predict(rows[start : start + limit], inputs[start : start + limit])
    for row, guess in zip(rows, noise, strict=True):
        row.latents = follow(row, guess)
        row.at += 1


def follow(row: Row, noise: Any) -> Any:
    """The scheduler's step; those that add noise take it from the row's own generator."""
    extra = {"generator": row.generator} if takes_generator(row.scheduler.__class__) else {}
    return row.scheduler.step(noise, row.timestep, row.latents, return_dict=False, **extra)[0]


@cache
def takes_generator(scheduler: type) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters  # type: ignore[attr-defined]


def predict_noise(unet: Any, rows: Sequence[Row], inputs: Sequence[Any], name_rows: Callable[[list[str] | None], None]) -> list[Any]:
    """One UNet call for all rows: a timestep and an adapter per row; guided rows stand in it twice, their unconditional half first."""
    import torch

    doubled = [number for number, row in enumerate(rows) if row.guided]
    order = [*doubled, *range(len(rows))]
    embeddings = [rows[number].negative for number in doubled] + [row.positive for row in rows]
    name_rows([rows[number].adapter for number in order])
    noise = unet(
        torch.cat([inputs[number] for number in order]),
        torch.stack([rows[number].timestep for number in order]).to(inputs[0].device),
        encoder_hidden_states=torch.cat(embeddings),
        return_dict=False,
    )[0]
    name_rows(None)
    halves = {number: noise[place : place + 1] for place, number in enumerate(doubled)}
    whole = [noise[len(doubled) + number : len(doubled) + number + 1] for number in range(len(rows))]
    return [
        halves[number] + row.guidance * (whole[number] - halves[number]) if row.guided else whole[number] for number, row in enumerate(rows)
    ]  # fmt: skip


@dataclass(eq=False)
class Waiting(Generic[T]):
    item: T
    since: float


class DynamicBatch(Generic[T]):
    """Compatible requests are held for `window_seconds`, or until `most` are together. For engines whose batch starts and ends at once."""

    def __init__(self, most: int, window_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.window, self.clock = most, window_seconds, clock
        self._held: OrderedDict[Hashable, list[Waiting[T]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, key: Hashable, item: T) -> None:
        """Only what has been found sound: one bad row fails a whole batch."""
        self._held.setdefault(key, []).append(Waiting(item, self.clock()))

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
        key = min(due, key=lambda key: self._held[key][0].since)
        held = self._held.pop(key)
        if held[self.most :]:
            self._held[key] = held[self.most :]
        return [one.item for one in held[: self.most]]

    def _due_in(self, held: list[Waiting[T]]) -> float:
        return 0.0 if len(held) >= self.most else max(0.0, held[0].since + self.window - self.clock())
