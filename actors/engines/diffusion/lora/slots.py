"""LoRAs in a model's memory: a fixed number of slots, chosen row by row.

The model's weights do not change: a layer that a LoRA changes is patched once, to add the LoRA output of each row of the current call.
A slot that no row uses can be given to another LoRA; the least recently used is evicted first.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from actors.engines.diffusion.batching import BASE_MODEL
from actors.engines.diffusion.lora.names import LayerTable
from actors.engines.diffusion.lora.strength import describe_strength, invalid_lora
from actors.engines.diffusion.lora.tensors import LoraPair, read_pairs
from actors.engines.diffusion.requests import LoraFile
from actors.engines.process.failures import is_device_failure
from bus.errors import PermanentError, TemporaryError

LayerKey = tuple[str, str]


@dataclass
class LoraSlot:
    """`pairs`: (component, layer) → weights. `scale`: that of the order. `users`: orders that use the slot."""

    adapter: str
    scale: float
    pairs: dict[LayerKey, LoraPair]
    users: int = 0


@dataclass(frozen=True)
class BatchedLora:
    """The weights of one layer for calls with these `row_adapters`. Linear: `down` is rows × in × rank, `up` rows × rank × out, scaled;
    `rows` are the indices of rows with an adapter. `convolutions`: (row indices, pair, scale) by adapter.
    """

    row_adapters: tuple[str, ...]
    rows: Any = None
    down: Any = None
    up: Any = None
    convolutions: list[tuple[Any, LoraPair, float]] = field(default_factory=list)


class LoraSlots:
    """The adapters of one pipeline. `loads` counts how often weights were read; `layers` are those that a LoRA may change."""

    def __init__(self, pipeline: Any, max_slots: int) -> None:
        self.pipeline, self.max_slots, self.loads, self.layers = pipeline, max_slots, 0, LayerTable(pipeline)
        self._slots: OrderedDict[Hashable, LoraSlot] = OrderedDict()
        self._slots_by_adapter: dict[str, LoraSlot] = {}
        self._row_adapters: tuple[str, ...] | None = None
        self._patched_layers: dict[LayerKey, Any] = {}
        self._batched: dict[LayerKey, BatchedLora] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def set_row_adapters(self, adapters: list[str] | None) -> None:
        """Set the adapter of each row of the next call. None: no row has one."""
        self._row_adapters = tuple(adapters) if adapters and set(adapters) != {BASE_MODEL} else None

    def has_slot_for(self, lora: LoraFile | None) -> bool:
        """Whether `acquire` would find a slot now."""
        if lora is None or lora.slot_key in self._slots or len(self._slots) < self.max_slots:
            return True
        return any(not slot.users for slot in self._slots.values())

    def acquire(self, lora: LoraFile | None) -> str:
        """The adapter's name. Raises PermanentError("lora-invalid"); then no slot is taken."""
        if lora is None:
            return BASE_MODEL
        slot = self._slots.get(lora.slot_key) or self._load(lora)
        self._slots.move_to_end(lora.slot_key)
        slot.users += 1
        return slot.adapter

    def release(self, lora: LoraFile | None) -> None:
        if lora and lora.slot_key in self._slots:
            self._slots[lora.slot_key].users -= 1

    def describe(self, lora: LoraFile) -> dict[str, str]:
        """Which LoRA is applied, and how strongly; for one that has a slot."""
        strength = describe_strength({key: (pair.scaling, pair.alpha_from) for key, pair in self._slots[lora.slot_key].pairs.items()})
        return {"lora_sha256": lora.sha256, "lora_scale": f"{lora.scale:g}", **strength}

    def clear(self) -> None:
        """Undo the patches and drop all references to the model."""
        for layer in self._patched_layers.values():
            del layer.forward
        for table in (self._patched_layers, self._slots, self._slots_by_adapter, self._batched):
            table.clear()
        self.pipeline = None

    def _load(self, lora: LoraFile) -> LoraSlot:
        try:
            pairs = read_pairs(lora, self.pipeline, self.layers)
        except (PermanentError, TemporaryError):
            raise
        except Exception as error:
            if is_device_failure(error):
                raise
            raise invalid_lora(lora.origin, f"its weights cannot be read ({type(error).__name__})") from error
        if len(self._slots) >= self.max_slots:
            self._evict()
        self.loads += 1
        slot = LoraSlot(f"lora-{self.loads}", lora.scale, pairs)
        self._slots[lora.slot_key] = self._slots_by_adapter[slot.adapter] = slot
        for key in pairs.keys() - self._patched_layers.keys():
            self._patch_layer(key)
        return slot

    def _evict(self) -> None:
        key = next(key for key, slot in self._slots.items() if not slot.users)
        del self._slots_by_adapter[self._slots.pop(key).adapter]
        self._batched.clear()

    def _patch_layer(self, key: LayerKey) -> None:
        component, name = key
        layer = getattr(self.pipeline, component).get_submodule(name)
        layer.forward = partial(self._forward, key, layer, layer.forward)
        self._patched_layers[key] = layer

    def _forward(self, key: LayerKey, layer: Any, original_forward: Callable[..., Any], x: Any, *arguments: Any, **options: Any) -> Any:
        result = original_forward(x, *arguments, **options)
        if self._row_adapters is None:
            return result
        batched = self._batched.get(key)
        if batched is None or batched.row_adapters != self._row_adapters:
            batched = self._batched[key] = self._batch(key)
        return add_lora_delta(batched, layer, x, result)

    def _batch(self, key: LayerKey) -> BatchedLora:
        """The layer's weights for the current rows; kept as long as the adapters of the rows stay the same."""
        assert self._row_adapters is not None
        rows = [
            number for number, name in enumerate(self._row_adapters) if name != BASE_MODEL and key in self._slots_by_adapter[name].pairs
        ]
        if not rows:
            return BatchedLora(self._row_adapters)
        rows_by_adapter = {
            name: [row for row in rows if self._row_adapters[row] == name]
            for name in dict.fromkeys(self._row_adapters[row] for row in rows)
        }
        slots = {name: self._slots_by_adapter[name] for name in rows_by_adapter}
        return batch_pairs(self._row_adapters, rows_by_adapter, {name: (slot.pairs[key], slot.scale) for name, slot in slots.items()})


def batch_pairs(
    row_adapters: tuple[str, ...], rows_by_adapter: dict[str, list[int]], pairs: dict[str, tuple[LoraPair, float]]
) -> BatchedLora:
    """Stack the weights of all rows; smaller ranks are padded with zeros. Convolutions are applied adapter by adapter."""
    import torch

    device = next(iter(pairs.values()))[0].down.device
    if any(pair.down.dim() == 4 for pair, _ in pairs.values()):
        convolutions = [
            (torch.tensor(rows_by_adapter[name], device=device), pair, pair.scaling * scale) for name, (pair, scale) in pairs.items()
        ]
        return BatchedLora(row_adapters, convolutions=convolutions)
    rank = max(pair.rank for pair, _ in pairs.values())
    downs = {name: pad_rank(pair.down.T, 1, rank) for name, (pair, _) in pairs.items()}
    ups = {name: pad_rank(pair.up.T * (pair.scaling * scale), 0, rank) for name, (pair, scale) in pairs.items()}
    rows = sorted(row for adapter_rows in rows_by_adapter.values() for row in adapter_rows)
    down, up = (torch.stack([weights[row_adapters[row]] for row in rows]) for weights in (downs, ups))
    return BatchedLora(row_adapters, torch.tensor(rows, device=device), down, up)


def pad_rank(weight: Any, axis: int, rank: int) -> Any:
    import torch

    missing = rank - weight.shape[axis]
    shape = (weight.shape[0], missing) if axis else (missing, weight.shape[1])
    return torch.cat([weight, weight.new_zeros(shape)], dim=axis) if missing else weight


def add_lora_delta(batched: BatchedLora, layer: Any, x: Any, result: Any) -> Any:
    """`result` plus the LoRA output of each row. The first axis of `x` and `result` is the row."""
    for rows, pair, factor in batched.convolutions:
        result = result.index_add(0, rows, lora_conv2d(layer, pair, x[rows]) * factor)
    if batched.rows is None:
        return result
    rows_of_x = x if len(batched.rows) == len(x) else x[batched.rows]
    delta = (rows_of_x.unsqueeze(1) @ batched.down @ batched.up).squeeze(1) if x.dim() == 2 else rows_of_x @ batched.down @ batched.up
    return result + delta if rows_of_x is x else result.index_add(0, batched.rows, delta)


def lora_conv2d(layer: Any, pair: LoraPair, x: Any) -> Any:
    from torch.nn import functional

    narrow = functional.conv2d(x, pair.down, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    return functional.conv2d(narrow, pair.up)
