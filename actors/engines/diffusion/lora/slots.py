"""Adapters in a model's memory: a fixed number of slots, chosen row by row, several for a row, each with its scale.

The model's weights do not change: a layer that an adapter changes is patched once, to add what the adapters of each row of the current call
say. A slot that no order uses can be given to another adapter; the least recently used is evicted first.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.engines.diffusion.batching import RowAdapters
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.lora.changes import LayerChange, tensors_of
from actors.engines.diffusion.lora.composition import Composition, DoraGains, compose
from actors.engines.diffusion.lora.layers import LayerKey, LayerTable
from actors.engines.diffusion.lora.stacking import CallRows, StackedCalls, StackedLayer, stack_layer
from actors.engines.diffusion.lora.strength import describe_strength, invalid_lora
from actors.engines.diffusion.lora.tensors import read_changes
from actors.engines.diffusion.requests import LoraFile
from actors.engines.process.failures import is_device_failure
from bus.errors import PermanentError, TemporaryError

STACK_FALLBACK = "lora-stack"
"""Among the fallbacks that were applied."""


@dataclass
class LoraSlot:
    """`changes`: layer → what the adapter does to it. `users`: how often orders have acquired it."""

    adapter: str
    changes: dict[LayerKey, LayerChange]
    users: int = 0


class LoraSlots:
    """The adapters of one model. `loads` counts how often weights were read; `layers` are those that an adapter may change."""

    def __init__(self, family: Family, max_slots: int) -> None:
        self.pipeline, self.max_slots, self.loads, self.layers = family.pipeline, max_slots, 0, LayerTable(family)
        self._slots: OrderedDict[Hashable, LoraSlot] = OrderedDict()
        self._slots_by_adapter: dict[str, LoraSlot] = {}
        self._rows: CallRows | None = None
        self._patched_layers: dict[LayerKey, Any] = {}
        self._gains = DoraGains()
        self._stacked = StackedCalls()

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def size_bytes(self) -> int:
        """Of the adapters in the slots, and of what is kept of them for the next calls."""
        tensors = [tensor for slot in self._slots.values() for change in slot.changes.values() for tensor in tensors_of(change)]
        adapters: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return adapters + self._stacked.size_bytes + self._gains.size_bytes

    def drop_stacked(self) -> str | None:
        """The fallback when memory runs out: its name, or None when nothing was kept. Until no order uses a slot, nothing is kept again,
        so that a step that is made again cannot ask for it twice.
        """
        return STACK_FALLBACK if self._stacked.stop_keeping() else None

    def text_adapters(self, adapters: RowAdapters) -> RowAdapters:
        """Those of a row that change a text encoder."""
        changes = {name: self._slots_by_adapter[name].changes for name, _ in adapters}
        return tuple((name, scale) for name, scale in adapters if any(part.startswith("text_encoder") for part, _ in changes[name]))

    def set_row_adapters(self, adapters: Sequence[RowAdapters] | None) -> None:
        """Set the adapters of each row of the next call, one entry for each half. None: no row has one."""
        self._rows = tuple(adapters) if adapters and any(adapters) else None

    def has_slots_for(self, loras: Sequence[LoraFile]) -> bool:
        """Whether `acquire` would now find a slot for each of these files of one order."""
        wanted = {lora.slot_key for lora in loras}
        evictable = sum(not slot.users for key, slot in self._slots.items() if key not in wanted)
        return len(wanted - self._slots.keys()) <= self.max_slots - len(self._slots) + evictable

    def acquire(self, lora: LoraFile) -> str:
        """The adapter's name. Raises PermanentError("lora-invalid"), TemporaryError("lora-gone"); then no slot is taken."""
        slot = self._slots.get(lora.slot_key) or self._load(lora)
        self._slots.move_to_end(lora.slot_key)
        slot.users += 1
        return slot.adapter

    def release(self, lora: LoraFile) -> None:
        """What is kept for the next calls is dropped with the last order that uses a slot."""
        if lora.slot_key in self._slots:
            self._slots[lora.slot_key].users -= 1
        if not any(slot.users for slot in self._slots.values()):
            self._stacked.clear()

    def describe(self, loras: Sequence[LoraFile]) -> dict[str, str]:
        """Which adapters are applied, and how strongly, separated by commas in the order of the files, which have slots."""
        entries = [
            {"lora_sha256": lora.sha256, "lora_scale": f"{lora.scale:g}"}
            | describe_strength({key: (change.scaling, change.alpha_from) for key, change in self._slots[lora.slot_key].changes.items()})
            for lora in loras
        ]
        return {name: ",".join(entry[name] for entry in entries) for name in (entries[0] if entries else ())}

    def keep_out_of_compiled_code(self) -> None:
        """What adapters add depends on the rows of each call: compiled blocks leave their graph for the layers that an adapter changes."""
        import torch

        self._forward = torch.compiler.disable(self._forward)  # type: ignore[method-assign]

    def clear(self) -> None:
        """Undo the patches and drop all references to the model."""
        for layer in self._patched_layers.values():
            del layer.forward
        for table in (self._patched_layers, self._slots, self._slots_by_adapter, self._stacked, self._gains):
            table.clear()
        self.pipeline = None

    def _load(self, lora: LoraFile) -> LoraSlot:
        try:
            changes = read_changes(lora, self.pipeline, self.layers)
        except (PermanentError, TemporaryError):
            raise
        except Exception as error:
            if is_device_failure(error):
                raise
            raise invalid_lora(lora.origin, f"its weights cannot be read ({type(error).__name__})") from error
        if len(self._slots) >= self.max_slots:
            self._evict()
        self.loads += 1
        slot = LoraSlot(f"lora-{self.loads}", changes)
        self._slots[lora.slot_key] = self._slots_by_adapter[slot.adapter] = slot
        for key in changes.keys() - self._patched_layers.keys():
            self._patch_layer(key)
        return slot

    def _evict(self) -> None:
        key = next(key for key, slot in self._slots.items() if not slot.users)
        del self._slots_by_adapter[self._slots.pop(key).adapter]
        self._stacked.clear()
        self._gains.clear()

    def _patch_layer(self, key: LayerKey) -> None:
        part, name = key
        layer = getattr(self.pipeline, part).get_submodule(name)
        layer.forward = partial(self._forward, key, layer, layer.forward)
        self._patched_layers[key] = layer

    def _forward(self, key: LayerKey, layer: Any, original_forward: Callable[..., Any], x: Any, *arguments: Any, **options: Any) -> Any:
        result = original_forward(x, *arguments, **options)
        stacked = self._stack(key, layer, x) if self._rows else None
        return result if stacked is None else stacked.add_to(layer, x, result)

    def _stack(self, key: LayerKey, layer: Any, x: Any) -> StackedLayer | None:
        """The adapters of the current rows on a layer, None without any."""
        assert self._rows
        return self._stacked.get(self._rows, (key, x.device, x.dtype), partial(self._build, key, layer, x))

    def _build(self, key: LayerKey, layer: Any, x: Any) -> StackedLayer | None:
        """Raises RuntimeError when the first axis of the layer's input is not the row."""
        assert self._rows
        compositions = {row: self._compose(row, key, layer) for row in dict.fromkeys(self._rows)}
        used = dict.fromkeys(adapter for composition in compositions.values() if composition for adapter in composition.coefficients)
        if not used:
            return None
        if len(x) != len(self._rows):
            raise RuntimeError(f"the layer {'.'.join(key)} is called with {len(x)} rows, not with {len(self._rows)}")
        changes = {adapter: self._slots_by_adapter[adapter].changes[key] for adapter in used}
        return stack_layer(layer, [compositions[row] for row in self._rows], changes, x)

    def _compose(self, row: RowAdapters, key: LayerKey, layer: Any) -> Composition | None:
        """What a row's adapters do to a layer together; None when they do not change it."""
        changes = [
            (adapter, change, scale, self._gains.get(adapter, scale, key, layer, change))
            for adapter, scale in row
            if (change := self._slots_by_adapter[adapter].changes.get(key))
        ]
        return compose(changes) if changes else None


def check_slots(loras: Sequence[LoraFile], max_slots: int) -> None:
    """Raises PermanentError("lora-invalid") for an order with more adapters than a model has slots: it would wait for ever."""
    count = len({lora.slot_key for lora in loras})
    if count > max_slots:
        raise PermanentError("lora-invalid", f"the order has {count} LoRAs, a model has {max_slots} slots for them (IMAGE_LORA_SLOTS)")
