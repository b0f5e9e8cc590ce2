"""The layers of a model that an adapter may change, by every name that a file may give them, and the check of a file against them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.lora.names import LayerKeys, group_keys
from actors.engines.diffusion.lora.shapes import Shape, fits
from actors.engines.diffusion.lora.strength import invalid_lora

LayerKey = tuple[str, str]
"""Part of the pipeline, and the layer's name in it."""
NAMED_KEYS = 3
"""How many of the keys that were not understood a message names."""
OLD_PROJECTIONS = {
    False: {"to_q_lora": "to_q", "to_k_lora": "to_k", "to_v_lora": "to_v", "to_out_lora": "to_out.0"},
    True: {"to_q_lora": "q_proj", "to_k_lora": "k_proj", "to_v_lora": "v_proj", "to_out_lora": "out_proj"},
}
"""Names of old versions of diffusers; True: in a text encoder."""
FAMILY_MARKS = {
    "Flux": re.compile(r"(double_blocks|single_blocks|single_transformer_blocks)[._]"),
    "Stable Diffusion 3": re.compile(r"joint_blocks[._]"),
    "Stable Diffusion XL": re.compile(r"^(lora_te2_|text_encoder_2\.)|(input_blocks_[478]|output_blocks_[012])_1_transformer_blocks_[1-9]"),
    "Qwen-Image": re.compile(r"(img_mod|txt_mod|img_mlp|txt_mlp)[._]"),
    "Z-Image": re.compile(r"(noise_refiner|context_refiner|attention_qkv|attention\.qkv|layers[._]\d+[._](attention|feed_forward))"),
    "Wan": re.compile(r"blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"),
    "Stable Diffusion": re.compile(r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]"),
}
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Of the texts that the cross-attention of a U-Net reads."""


@dataclass(frozen=True)
class LayerTarget:
    """A layer of the model. `shape`: that of its weight. `rows`: of a fused layer's output in the file, those that are this layer's."""

    part: str
    layer: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def key(self) -> LayerKey:
        return self.part, self.layer


@dataclass(frozen=True)
class PlannedChange:
    """The tensors of a file that change one layer."""

    keys: LayerKeys
    target: LayerTarget


class LayerTable:
    """The linear and convolutional layers of a family's pipeline. They may be on the meta device: only names and shapes are read.

    `targets`: (part, name in a file without its prefix) → the layer, or the layers that are one there.
    """

    def __init__(self, family: Family) -> None:
        prefixes = {"lycoris_": family.denoiser_part, **family.lora_prefixes}
        self.family_name: str = family.name
        self.prefixes: dict[str, str] = dict(sorted(prefixes.items(), key=lambda item: -len(item[0])))
        self.targets: dict[LayerKey, list[LayerTarget]] = {}
        self._excluded: set[LayerKey] = set()
        for part in dict.fromkeys(self.prefixes.values()):
            for name, module in changeable_layers(getattr(family.pipeline, part, None)):
                aliases = {name: None} | {alias.name: alias.rows for alias in family.lora_aliases(part, name)}
                for alias, rows in aliases.items():
                    self._add(LayerTarget(part, name, weight_shape(module), rows), alias, family.lora_excluded(part, name))

    def _add(self, target: LayerTarget, alias: str, excluded: bool) -> None:
        for spelling in {alias, alias.replace(".", "_")}:
            if excluded:
                self._excluded.add((target.part, spelling))
            targets = self.targets.setdefault((target.part, spelling), [])
            if target not in targets:
                targets.append(target)

    def plan(self, shapes: Mapping[str, Shape], origin: str) -> dict[LayerKey, PlannedChange]:
        """Layer → the tensors that change it. `shapes`: key → shape. Raises PermanentError("lora-invalid")."""
        plan: dict[LayerKey, PlannedChange] = {}
        unknown: list[LayerKeys] = []
        layers = group_keys(shapes, origin)
        for keys in layers.values():
            targets = self.find(keys.name, origin)
            if not targets:
                unknown.append(keys)
            for target in targets:
                if other := plan.get(target.key):
                    raise invalid_lora(origin, f"the keys {other.keys.first[:200]!r} and {keys.first[:200]!r} change the same layer")
                plan[target.key] = self._fit(keys, target, targets, shapes, origin)
        if unknown:
            raise invalid_lora(origin, self._describe_unknown(unknown, len(layers), shapes))
        return plan

    def find(self, name: str, origin: str) -> list[LayerTarget]:
        """The layers that a file's layer changes: none when it is unknown, several when it is fused."""
        for prefix, part in self.prefixes.items():
            if not name.startswith(prefix):
                continue
            key = part, current_name(part, name.removeprefix(prefix))
            if key in self._excluded:
                raise invalid_lora(origin, f"the layer {name[:200]!r} of {self.family_name} cannot be changed row by row")
            if key in self.targets:
                return self.targets[key]
        return []

    def bare_name(self, name: str) -> str:
        """A layer's name in a file without its prefix, as the patterns of a configuration know it."""
        return name.removeprefix(next((prefix for prefix in self.prefixes if name.startswith(prefix)), ""))

    def _fit(
        self, keys: LayerKeys, target: LayerTarget, targets: Sequence[LayerTarget], shapes: Mapping[str, Shape], origin: str
    ) -> PlannedChange:
        total = max(other.rows[1] if other.rows else target.shape[0] for other in targets)
        weight = (total, *target.shape[1:])
        if not fits(keys, shapes, weight):
            found = ", ".join(f"{key[:200]!r} {tuple(shapes[key])}" for role, key in keys.keys.items() if role != "alpha")
            raise invalid_lora(origin, f"the shapes of {found} do not fit their layer {weight}: {self._other_model(keys, shapes)}")
        return PlannedChange(keys, target)

    def _other_model(self, keys: LayerKeys, shapes: Mapping[str, Shape]) -> str:
        family = likely_family(keys, shapes)
        other = f", it seems to be for {family}" if family and not self.family_name.startswith(family) else ""
        return f"the {keys.method} is for another model than this {self.family_name}{other}"

    def _describe_unknown(self, unknown: Sequence[LayerKeys], count: int, shapes: Mapping[str, Shape]) -> str:
        named = ", ".join(repr(keys.first[:200]) for keys in unknown[:NAMED_KEYS])
        more = f" and {len(unknown) - NAMED_KEYS} more" if len(unknown) > NAMED_KEYS else ""
        share = "any" if len(unknown) == count else f"{len(unknown)}"
        return f"this model has no layer for {share} of its {count} layers: {named}{more}; {self._other_model(unknown[0], shapes)}"


def changeable_layers(part: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of the layers of a part; a pipeline may lack the part."""
    from torch.nn import Conv2d, Linear

    for name, module in part.named_modules() if part is not None else ():
        if isinstance(module, Linear) or (isinstance(module, Conv2d) and module.groups == 1):
            yield name, module


def weight_shape(module: Any) -> tuple[int, ...]:
    """out × in, for convolutions with the kernel; quantized weights themselves have other shapes."""
    if hasattr(module, "in_features"):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels, *module.kernel_size


def current_name(part: str, name: str) -> str:
    """The layer's name of today for one of an old version of diffusers: `attn1.processor.to_q_lora` is `attn1.to_q`."""
    name = name.replace(".processor.", ".")
    parent, dot, last = name.rpartition(".")
    return f"{parent}{dot}{OLD_PROJECTIONS[part.startswith('text_encoder')].get(last, last)}"


def likely_family(keys: LayerKeys, shapes: Mapping[str, Shape]) -> str | None:
    """The family of models that a layer's name, or the width of the text that it reads, points to."""
    down = shapes[keys.keys["down"]] if "down" in keys.keys else ()
    if len(down) > 1 and "attn2" in keys.name and re.search(r"to_[kv](_lora)?$", keys.name):
        return WIDTHS.get(down[1])
    return next((family for family, mark in FAMILY_MARKS.items() if mark.search(keys.name)), None)
