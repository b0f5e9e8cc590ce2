"""The names of a LoRA's tensors, in the key formats of diffusers, kohya and PEFT, and the layers of a model that they change.

Only names and shapes are read, so that a file is checked before the device holds any of it; each problem is `lora-invalid` with the key.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from actors.engines.diffusion.lora.strength import COMPONENTS, invalid_lora

Half = Literal["down", "up", "alpha"]
KEY_HALVES: dict[Half, re.Pattern[str]] = {
    "down": re.compile(r"\.(lora_A|lora_down|lora\.down|down)\.(?:default\.)?weight$"),
    "up": re.compile(r"\.(lora_B|lora_up|lora\.up|up)\.(?:default\.)?weight$"),
    "alpha": re.compile(r"\.alpha$"),
}
KEY_PREFIXES = {
    "unet.": "unet", "lora_unet_": "unet", "base_model.model.": "unet",
    "text_encoder.": "text_encoder", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
}  # fmt: skip
"""Of diffusers, kohya, and PEFT's adapter folders."""
OLD_PROJECTIONS = {
    "unet": {"to_q_lora": "to_q", "to_k_lora": "to_k", "to_v_lora": "to_v", "to_out_lora": "to_out.0"},
    "text_encoder": {"to_q_lora": "q_proj", "to_k_lora": "k_proj", "to_v_lora": "v_proj", "to_out_lora": "out_proj"},
}
"""Names of old versions of diffusers."""
ORIGINAL_RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ORIGINAL_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
"""Names of the first Stable Diffusion, by those of diffusers."""

Shape = Sequence[int]


@dataclass(frozen=True)
class PairKeys:
    """The keys of the tensors that change one layer."""

    down: str
    up: str
    alpha: str | None = None


def component_of(key: str) -> str | None:
    return next((component for prefix, component in KEY_PREFIXES.items() if key.startswith(prefix)), None)


def split_key(key: str) -> tuple[str, Half] | None:
    """The layer as the file names it, and what of it the tensor is. None: it belongs to no pair."""
    for half, pattern in KEY_HALVES.items():
        if match := pattern.search(key):
            return key[: match.start()].removesuffix(".lora_linear_layer"), half
    return None


def group_keys(keys: Iterable[str], origin: str) -> dict[str, PairKeys]:
    """Layer as the file names it → its keys. Raises PermanentError("lora-invalid") for a key without its pair."""
    layers: dict[str, dict[str, str]] = {}
    for key in keys:
        parts = split_key(key)
        if parts is None:
            raise invalid_lora(origin, f"the key {key[:200]!r} belongs to no LoRA pair; DoRA and LyCORIS are not supported")
        layer, half = parts
        if other := layers.setdefault(layer, {}).get(half):
            raise invalid_lora(origin, f"the keys {other[:200]!r} and {key[:200]!r} are both the {half} tensor of one layer")
        layers[layer][half] = key
    for halves in layers.values():
        if missing := {"down", "up"} - halves.keys():
            key = halves.get("down") or halves.get("up") or halves["alpha"]
            raise invalid_lora(origin, f"the key {key[:200]!r} has no {' and no '.join(sorted(missing))} tensor of its pair beside it")
    return {layer: PairKeys(**halves) for layer, halves in layers.items()}


class LayerTable:
    """The layers of a pipeline that a LoRA may change, by every name that a file may give them."""

    def __init__(self, pipeline: Any) -> None:
        from torch.nn import Conv2d, Linear

        self._layers: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}
        per_block = pipeline.unet.config.layers_per_block
        plain = {number for number, block in enumerate(pipeline.unet.up_blocks) if not getattr(block, "attentions", None)}
        for component in COMPONENTS:
            for name, module in getattr(pipeline, component).named_modules():
                if not isinstance(module, Linear | Conv2d):
                    continue
                for alias in {name, *aliases(component, name, per_block, plain)}:
                    self._layers[component, alias] = self._layers[component, alias.replace(".", "_")] = name, tuple(module.weight.shape)

    def plan(self, shapes: Mapping[str, Shape], origin: str) -> dict[tuple[str, str], PairKeys]:
        """(component, layer) → the keys of its tensors. `shapes`: key → shape. Raises PermanentError("lora-invalid")."""
        plan: dict[tuple[str, str], PairKeys] = {}
        for keys in group_keys(shapes, origin).values():
            component, layer, weight = self._find(keys.down, origin)
            if other := plan.get((component, layer)):
                raise invalid_lora(origin, f"the keys {other.down[:200]!r} and {keys.down[:200]!r} change the same layer")
            down, up = shapes[keys.down], shapes[keys.up]
            if not fits(down, up, weight):
                raise invalid_lora(
                    origin,
                    f"{keys.down[:200]!r} and its pair have the shapes {tuple(down)} and {tuple(up)}, their layer {weight}: "
                    "the LoRA is for another model",
                )
            plan[component, layer] = keys
        return plan

    def _find(self, key: str, origin: str) -> tuple[str, str, tuple[int, ...]]:
        component = component_of(key) or ""
        prefix = next((prefix for prefix in KEY_PREFIXES if key.startswith(prefix)), "")
        parts = split_key(key)
        name = parts[0].removeprefix(prefix) if parts else key
        found = self._layers.get((component, current_name(component, name)))
        if found is None:
            raise invalid_lora(origin, f"this model has no layer for the key {key[:200]!r}: the LoRA is for another model")
        return component, *found


def current_name(component: str, name: str) -> str:
    """The layer's name of today for one of an old version of diffusers: `attn1.processor.to_q_lora` is `attn1.to_q`."""
    name = name.replace(".processor.", ".")
    parent, dot, last = name.rpartition(".")
    return f"{parent}{dot}{OLD_PROJECTIONS.get(component, {}).get(last, last)}"


def aliases(component: str, name: str, layers_per_block: Any, plain_up_blocks: Collection[int]) -> Iterator[str]:
    """Other names of a layer. In the text encoder some versions of the libraries begin it with `text_model.`, some do not."""
    if component == "text_encoder":
        yield name.removeprefix("text_model.")
        yield f"text_model.{name.removeprefix('text_model.')}"
    elif isinstance(layers_per_block, int) and (original := original_name(name, layers_per_block, plain_up_blocks)):
        yield original


def original_name(name: str, layers_per_block: int, plain_up_blocks: Collection[int]) -> str | None:
    """The name of a UNet's layer in the first Stable Diffusion, which some trainers use. `plain_up_blocks`: those without attention."""
    if name in ORIGINAL_UNET:
        return ORIGINAL_UNET[name]
    size = layers_per_block + 1
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        way, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        place = f"input_blocks.{block * size + number + 1}" if way == "down" else f"output_blocks.{block * size + number}"
        return f"{place}.0.{ORIGINAL_RESNET.get(rest, rest)}" if kind == "resnets" else f"{place}.1.{rest}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        if match[1] == "attentions":
            return f"middle_block.1.{match[3]}"
        return f"middle_block.{2 * int(match[2])}.{ORIGINAL_RESNET.get(match[3], match[3])}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", name):
        return f"input_blocks.{(int(match[1]) + 1) * size}.0.op"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", name):
        block = int(match[1])
        return f"output_blocks.{(block + 1) * size - 1}.{1 if block in plain_up_blocks else 2}.conv"
    return None


def fits(down: Shape, up: Shape, weight: Shape) -> bool:
    """Whether a pair fits a layer. `down`: rank × in, `up`: out × rank, for convolutions with the kernel and with 1 × 1 behind.

    Trainers write a pair of a 1 × 1 convolution with or without the kernel.
    """
    if len(down) not in (2, 4) or len(up) not in (2, 4):
        return False
    kernel = tuple(weight[2:]) or (1, 1)
    return (
        (up[0], down[1]) == tuple(weight[:2])
        and down[0] == up[1] > 0
        and (tuple(down[2:]) or (1, 1)) == kernel
        and (tuple(up[2:]) or (1, 1)) == (1, 1)
    )
