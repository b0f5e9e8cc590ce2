"""The adapters of one row on one layer, composed as PEFT composes them: one after the other, in the order of the row.

A LoRA, LoHa or LoKr adds to the output. DoRA scales what is there without the bias, that of the adapters before it too, and adds. Since all
of it is linear, a row needs no more than a coefficient of each adapter, and a gain of the layer's own output.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.engines.diffusion.lora.changes import LayerChange, LowRank
from actors.engines.diffusion.lora.layers import LayerKey

MAX_GAINS = 16
"""Adapters with a scale whose gains are kept; a gain has one number for each output of a layer."""


@dataclass(frozen=True)
class Composition:
    """`coefficients`: adapter → a number, or one for each output. `gain`: of the layer's own output without its bias; None: 1."""

    coefficients: dict[str, Any]
    gain: Any = None


def compose(changes: Sequence[tuple[str, LayerChange, float, Any]]) -> Composition:
    """`changes`: adapter, its change of the layer, its scale in this row, and its `dora_gain` or None, in the order of the row."""
    coefficients: dict[str, Any] = {}
    total = None
    for adapter, change, scale, gain in changes:
        added = change.strength * scale
        if gain is not None:
            coefficients = {name: value * gain for name, value in coefficients.items()}
            total = gain if total is None else total * gain
            added = added * gain
        coefficients[adapter] = coefficients.get(adapter, 0.0) + added
    return Composition(coefficients, total)


class DoraGains:
    """The gains of DoRA, by adapter and scale: they depend on both, and take as much work as the product of a layer's weight."""

    def __init__(self) -> None:
        self._gains: OrderedDict[tuple[str, float], dict[LayerKey, Any]] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        tensors = [gain for gains in self._gains.values() for gain in gains.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def clear(self) -> None:
        self._gains.clear()

    def get(self, adapter: str, scale: float, key: LayerKey, layer: Any, change: LayerChange) -> Any:
        """None when the change is no DoRA."""
        if change.magnitude is None:
            return None
        gains = self._gains.setdefault((adapter, scale), {})
        self._gains.move_to_end((adapter, scale))
        while len(self._gains) > MAX_GAINS:
            self._gains.popitem(last=False)
        if key not in gains:
            gains[key] = dora_gain(layer, change, scale)
        return gains[key]


def dora_gain(layer: Any, change: LayerChange, scale: float) -> Any:
    """The magnitude by the norm of the changed weight, for each output; computed in float32 or wider."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    assert isinstance(change.delta, LowRank)
    delta = change.delta.weight()
    wide = torch.promote_types(delta.dtype, torch.float32)
    weight = dequantize_module_weight(layer).detach().to(device=delta.device, dtype=wide)
    norm = (weight + delta.to(wide) * (change.strength * scale)).flatten(1).norm(dim=1)
    return change.magnitude.to(wide) / norm
