"""LoRAs in a model's memory: a fixed number of slots, each an adapter of its own, chosen row by row.

A slot that no row uses may be given to another LoRA; the least recently used goes first.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.engines.batching import BASE
from actors.engines.image_work import LoraFile
from actors.engines.loras import invalid
from bus.errors import TemporaryError

SUFFIXES = (".lora_A.weight", ".lora_B.weight", ".lora.down.weight", ".lora.up.weight", ".alpha")


@dataclass
class Slot:
    adapter: str
    users: int = 0


class LoraSlots:
    """The adapters of one pipeline. `loads` counts how often weights were read."""

    def __init__(self, pipeline: Any, slots: int) -> None:
        self.pipeline, self.slots, self.loads = pipeline, slots, 0
        self._held: OrderedDict[tuple[str, float], Slot] = OrderedDict()
        self._rows: tuple[str, ...] | None = None
        self._taught: list[Any] = []

    def __len__(self) -> int:
        return len(self._held)

    def name_rows(self, names: list[str] | None) -> None:
        """Which adapter each row of the coming call uses."""
        self._rows = tuple(names) if names and set(names) != {BASE} else None

    def free_for(self, lora: LoraFile | None) -> bool:
        """Whether `acquire` would find a place now."""
        if lora is None or lora.slot_key in self._held or len(self._held) < self.slots:
            return True
        return any(not slot.users for slot in self._held.values())

    def acquire(self, lora: LoraFile | None) -> str:
        """The adapter's name. Raises PermanentError("lora-invalid"); then nothing of it stays in the model."""
        if lora is None:
            return BASE
        slot = self._held.get(lora.slot_key) or self._load(lora)
        self._held.move_to_end(lora.slot_key)
        slot.users += 1
        return slot.adapter

    def release(self, lora: LoraFile | None) -> None:
        if lora and lora.slot_key in self._held:
            self._held[lora.slot_key].users -= 1

    def _load(self, lora: LoraFile) -> Slot:
        if len(self._held) >= self.slots:
            self._evict()
        taken = {slot.adapter for slot in self._held.values()}
        slot = Slot(next(name for name in (f"slot{number}" for number in range(self.slots)) if name not in taken))
        weights = read_weights(lora, self.pipeline)
        try:
            self.pipeline.load_lora_weights(weights, adapter_name=slot.adapter)
        except (ValueError, RuntimeError, KeyError) as error:
            self.pipeline.delete_adapters(slot.adapter)
            raise invalid(lora.origin, f"the model does not take it: {error}") from None
        self._teach(slot.adapter, lora.scale)
        self._held[lora.slot_key] = slot
        self.loads += 1
        return slot

    def clear(self) -> None:
        """Let go of the model."""
        for layer in self._taught:
            del layer.forward
        self._taught.clear()
        self._held.clear()
        self.pipeline = None

    def _evict(self) -> None:
        key = next(key for key, slot in self._held.items() if not slot.users)
        self.pipeline.delete_adapters(self._held.pop(key).adapter)

    def _teach(self, adapter: str, scale: float) -> None:
        """Each LoRA layer learns to serve many adapters in one call; a layer is taught once for all adapters to come."""
        from peft.tuners.lora import LoraLayer

        for model in (self.pipeline.unet, self.pipeline.text_encoder):
            for layer in model.modules():
                if isinstance(layer, LoraLayer):
                    if adapter in layer.scaling:
                        layer.set_scale(adapter, scale)
                    layer.gathered = None
                    if "forward" not in vars(layer):
                        layer.forward = partial(self._forward, layer, layer.forward)
                        self._taught.append(layer)

    def _forward(self, layer: Any, one_by_one: Callable[..., Any], x: Any, *arguments: Any, **options: Any) -> Any:
        """What PEFT does adapter by adapter, for all rows at once where the layer is linear."""
        if self._rows is None:
            return layer.base_layer(x, *arguments, **options)
        if x.dim() != 3:
            return one_by_one(x, *arguments, adapter_names=list(self._rows), **options)
        if layer.gathered is None or layer.gathered.names != self._rows:
            layer.gathered = gather(layer, self._rows)
        return layer.gathered.add(x, layer.base_layer(x, *arguments, **options))


@dataclass(frozen=True)
class Gathered:
    """One layer's adapters for rows named so. `down`: rows × in × rank, `up`: rows × rank × out, scaled; `rows`: those with an adapter."""

    names: tuple[str, ...]
    rows: Any = None
    down: Any = None
    up: Any = None

    def add(self, x: Any, result: Any) -> Any:
        if self.rows is None:
            return result
        if len(self.rows) == len(x):
            return result + (x.to(self.down.dtype) @ self.down @ self.up).to(result.dtype)
        return result.index_add(0, self.rows, (x[self.rows].to(self.down.dtype) @ self.down @ self.up).to(result.dtype))


def gather(layer: Any, names: tuple[str, ...]) -> Gathered:
    """Smaller ranks are filled up with noughts. It is kept for as long as the same rows come."""
    import torch

    rows = [number for number, name in enumerate(names) if name in layer.lora_A]
    if not rows:
        return Gathered(names)
    used = sorted({names[row] for row in rows})
    rank = max(layer.r[name] for name in used)
    down = torch.stack([fill(layer.lora_A[name].weight.T, 1, rank) for name in used])
    up = torch.stack([fill(layer.lora_B[name].weight.T * layer.scaling[name], 0, rank) for name in used])
    which = torch.tensor([used.index(names[row]) for row in rows], device=down.device)
    return Gathered(names, torch.tensor(rows, device=down.device), down[which], up[which])


def fill(weight: Any, axis: int, rank: int) -> Any:
    import torch

    missing = rank - weight.shape[axis]
    shape = (weight.shape[0], missing) if axis else (missing, weight.shape[1])
    return torch.cat([weight, weight.new_zeros(shape)], dim=axis) if missing else weight


def read_weights(lora: LoraFile, pipeline: Any) -> dict[str, Any]:
    """The tensors in the form of diffusers. Raises PermanentError("lora-invalid") when a value is not finite or a shape does not fit."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(lora.path)
    except FileNotFoundError:
        text = f"the LoRA {lora.origin} has left the cache on the disk: make IMAGE_LORA_CACHE_BYTES larger"
        raise TemporaryError(text, code="lora-gone") from None
    except (SafetensorError, OSError) as error:
        raise invalid(lora.origin, str(error)) from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise invalid(lora.origin, f"{name!r} holds values that are not finite")
    tensors = {name.replace("base_model.model.", "unet.", 1).replace(".default.", "."): tensor for name, tensor in tensors.items()}
    check_fit(tensors, lora, pipeline)
    return tensors


def check_fit(tensors: dict[str, Any], lora: LoraFile, pipeline: Any) -> None:
    """Every pair must name a layer of this model and have its shape."""
    converted, _alphas = pipeline.lora_state_dict(dict(tensors), unet_config=pipeline.unet.config)
    layers = {f"{part}.{name}": layer for part in ("unet", "text_encoder") for name, layer in getattr(pipeline, part).named_modules()}
    for name, tensor in converted.items():
        layer = layers.get(layer_name(name, layers))
        if layer is None:
            raise invalid(lora.origin, f"this model has no layer for {name!r}: it was made for another")
        weight = getattr(layer, "weight", None)
        if weight is None:
            raise invalid(lora.origin, f"the layer of {name!r} has no weights")
        down = ".lora_A." in name or ".down." in name
        if tensor.shape[1 if down else 0] != weight.shape[1 if down else 0]:
            shapes = f"{tuple(tensor.shape)}, its layer {tuple(weight.shape)}"
            raise invalid(lora.origin, f"{name!r} has the shape {shapes}: it was made for another model")


def layer_name(key: str, layers: dict[str, Any]) -> str:
    """The layer that a key of the file speaks of. A layer that already bears adapters is wrapped: its weights are those of its base."""
    for suffix in SUFFIXES:
        key = key.removesuffix(suffix)
    key = key.replace(".processor", "").replace("_lora", "")
    key = key if key in layers else key.replace("to_out", "to_out.0")
    return f"{key}.base_layer" if f"{key}.base_layer" in layers else key
