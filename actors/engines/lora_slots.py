"""LoRAs in a model's memory: a fixed number of slots, chosen row by row.

The model's layers stay as they are; a layer that any LoRA changes is taught once to add what the rows of the present call want.
A slot that no row uses may be given to another LoRA; the least recently used goes first.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from actors.engines.batching import BASE
from actors.engines.image_work import LoraFile
from actors.engines.lora_weights import Pair, read_pairs

Key = tuple[str, str]


@dataclass
class Slot:
    """`pairs`: (part, layer) → weights. `scale`: the order's own."""

    adapter: str
    scale: float
    pairs: dict[Key, Pair]
    users: int = 0


@dataclass(frozen=True)
class Gathered:
    """One layer's part in calls whose rows are named so. Linear: `down` is rows × in × rank, `up` rows × rank × out, scaled."""

    names: tuple[str, ...]
    rows: Any = None
    down: Any = None
    up: Any = None
    convolutions: list[tuple[Any, Pair, float]] = field(default_factory=list)


class LoraSlots:
    """The adapters of one pipeline. `loads` counts how often weights were read."""

    def __init__(self, pipeline: Any, slots: int) -> None:
        self.pipeline, self.slots, self.loads = pipeline, slots, 0
        self._held: OrderedDict[tuple[str, float], Slot] = OrderedDict()
        self._by_name: dict[str, Slot] = {}
        self._rows: tuple[str, ...] | None = None
        self._taught: dict[Key, Any] = {}
        self._gathered: dict[Key, Gathered] = {}

    def __len__(self) -> int:
        return len(self._held)

    def name_rows(self, names: list[str] | None) -> None:
        """Which adapter each row of the coming call uses. None: no row uses any."""
        self._rows = tuple(names) if names and set(names) != {BASE} else None

    def free_for(self, lora: LoraFile | None) -> bool:
        """Whether `acquire` would find a place now."""
        if lora is None or lora.slot_key in self._held or len(self._held) < self.slots:
            return True
        return any(not slot.users for slot in self._held.values())

    def acquire(self, lora: LoraFile | None) -> str:
        """The adapter's name. Raises PermanentError("lora-invalid"); then nothing of it stays."""
        if lora is None:
            return BASE
        slot = self._held.get(lora.slot_key) or self._load(lora)
        self._held.move_to_end(lora.slot_key)
        slot.users += 1
        return slot.adapter

    def release(self, lora: LoraFile | None) -> None:
        if lora and lora.slot_key in self._held:
            self._held[lora.slot_key].users -= 1

    def clear(self) -> None:
        """Let go of the model."""
        for layer in self._taught.values():
            del layer.forward
        for memory in (self._taught, self._held, self._by_name, self._gathered):
            memory.clear()
        self.pipeline = None

    def _load(self, lora: LoraFile) -> Slot:
        pairs = read_pairs(lora, self.pipeline)
        if len(self._held) >= self.slots:
            self._evict()
        self.loads += 1
        slot = Slot(f"lora-{self.loads}", lora.scale, pairs)
        self._held[lora.slot_key] = self._by_name[slot.adapter] = slot
        for key in pairs.keys() - self._taught.keys():
            self._teach(key)
        return slot

    def _evict(self) -> None:
        key = next(key for key, slot in self._held.items() if not slot.users)
        del self._by_name[self._held.pop(key).adapter]
        self._gathered.clear()

    def _teach(self, key: Key) -> None:
        part, name = key
        layer = getattr(self.pipeline, part).get_submodule(name)
        layer.forward = partial(self._forward, key, layer, layer.forward)
        self._taught[key] = layer

    def _forward(self, key: Key, layer: Any, plain: Callable[..., Any], x: Any, *arguments: Any, **options: Any) -> Any:
        result = plain(x, *arguments, **options)
        if self._rows is None:
            return result
        gathered = self._gathered.get(key)
        if gathered is None or gathered.names != self._rows:
            gathered = self._gathered[key] = self._gather(key)
        return add(gathered, layer, x, result)

    def _gather(self, key: Key) -> Gathered:
        """It is kept for as long as the same rows come."""
        assert self._rows is not None
        rows = [number for number, name in enumerate(self._rows) if name != BASE and key in self._by_name[name].pairs]
        if not rows:
            return Gathered(self._rows)
        users = {name: [row for row in rows if self._rows[row] == name] for name in dict.fromkeys(self._rows[row] for row in rows)}
        slots = {name: self._by_name[name] for name in users}
        return gather(self._rows, users, {name: (slot.pairs[key], slot.scale) for name, slot in slots.items()})


def gather(names: tuple[str, ...], users: dict[str, list[int]], pairs: dict[str, tuple[Pair, float]]) -> Gathered:
    """One pair of stacks for all rows; smaller ranks are filled up with noughts. Convolutions go adapter by adapter."""
    import torch

    device = next(iter(pairs.values()))[0].down.device
    if any(pair.down.dim() == 4 for pair, _ in pairs.values()):
        convolutions = [(torch.tensor(users[name], device=device), pair, pair.factor * scale) for name, (pair, scale) in pairs.items()]
        return Gathered(names, convolutions=convolutions)
    rank = max(pair.rank for pair, _ in pairs.values())
    downs = {name: filled(pair.down.T, 1, rank) for name, (pair, _) in pairs.items()}
    ups = {name: filled(pair.up.T * (pair.factor * scale), 0, rank) for name, (pair, scale) in pairs.items()}
    rows = sorted(row for of_one in users.values() for row in of_one)
    down, up = (torch.stack([stack[names[row]] for row in rows]) for stack in (downs, ups))
    return Gathered(names, torch.tensor(rows, device=device), down, up)


def filled(weight: Any, axis: int, rank: int) -> Any:
    import torch

    missing = rank - weight.shape[axis]
    shape = (weight.shape[0], missing) if axis else (missing, weight.shape[1])
    return torch.cat([weight, weight.new_zeros(shape)], dim=axis) if missing else weight


def add(gathered: Gathered, layer: Any, x: Any, result: Any) -> Any:
    """`result` and what the rows' LoRAs add to it. The first axis is the rows'."""
    for rows, pair, factor in gathered.convolutions:
        result = result.index_add(0, rows, convolve(layer, pair, x[rows]) * factor)
    if gathered.rows is None:
        return result
    rows_of_x = x if len(gathered.rows) == len(x) else x[gathered.rows]
    change = (rows_of_x.unsqueeze(1) @ gathered.down @ gathered.up).squeeze(1) if x.dim() == 2 else rows_of_x @ gathered.down @ gathered.up
    return result + change if rows_of_x is x else result.index_add(0, gathered.rows, change)


def convolve(layer: Any, pair: Pair, x: Any) -> Any:
    from torch.nn import functional

    narrow = functional.conv2d(x, pair.down, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    return functional.conv2d(narrow, pair.up)
