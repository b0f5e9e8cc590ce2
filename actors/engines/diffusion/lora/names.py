"""The names of an adapter's tensors, in the key formats of diffusers, kohya, PEFT and LyCORIS: which tensors belong to one layer.

Only names are read here. A problem is `lora-invalid` with the key; a method that cannot be applied row by row is refused by its name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from actors.engines.diffusion.lora.strength import Method, invalid_lora

Role = Literal[
    "down", "up", "mid", "magnitude", "alpha",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
]  # fmt: skip
"""What a tensor is to its layer. `mid`: the kernel between the halves of a convolution; `magnitude`: of DoRA, one number for an output."""
ENDINGS: dict[str, Role] = {
    **{f"{name}{adapter}.weight": "down" for name in ("lora_A", "lora_down", "lora.down", "down") for adapter in ("", ".default")},
    **{f"{name}{adapter}.weight": "up" for name in ("lora_B", "lora_up", "lora.up", "up") for adapter in ("", ".default")},
    **{f"lora_magnitude_vector{adapter}{weight}": "magnitude" for adapter in ("", ".default") for weight in ("", ".weight")},
    **{f"{role}{adapter}": role for role in get_args(Role) if role.startswith(("hada", "lokr")) for adapter in ("", ".default")},
    "lora_mid.weight": "mid", "dora_scale": "magnitude", "alpha": "alpha",
}  # fmt: skip
"""What follows the layer's name and a dot in a key → what the tensor is."""
ENDING_PARTS = max(ending.count(".") + 1 for ending in ENDINGS)
HADAMARD = frozenset[Role]({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
COMPLETE: dict[frozenset[Role], Method] = {
    frozenset[Role]({"down", "up"}): "LoRA",
    frozenset[Role]({"down", "up", "mid"}): "LoRA",
    frozenset[Role]({"down", "up", "magnitude"}): "DoRA",
    HADAMARD: "LoHa",
    HADAMARD | {"hada_t1", "hada_t2"}: "LoHa",
    **{
        frozenset[Role]({*first, *second}): "LoKr"
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2"))
    },
}
"""The tensors of one layer beside its alpha → the method."""
REFUSED_METHODS = {
    "BOFT": re.compile(r"\.boft_"),
    "OFT": re.compile(r"\.oft_"),
    "IA3": re.compile(r"\.(ia3_l|on_input)\b"),
    "VeRA": re.compile(r"\.vera_"),
    "full differences": re.compile(r"\.(diff|diff_b|diff_m|set_weight)$"),
    "differences of norms": re.compile(r"\.[wb]_norm$"),
    "GLoRA": re.compile(r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$"),
    "LoRA of embeddings": re.compile(r"\.lora_embedding_[AB]"),
    "LoRA with biases": re.compile(r"\.(lora_[AB]|lora_up|lora_down)(?:\.default)?\.bias$"),
}


@dataclass(frozen=True)
class LayerKeys:
    """The keys of the tensors that change one layer. `name`: the layer as the file names it, with its prefix."""

    name: str
    method: Method
    keys: Mapping[Role, str]

    @property
    def first(self) -> str:
        """One of the keys, for messages."""
        return next(iter(self.keys.values()))


def split_key(key: str) -> tuple[str, Role] | None:
    """The layer as the file names it, and what of it the tensor is. None: it belongs to no method that is supported."""
    parts = key.rsplit(".", ENDING_PARTS)
    for first in range(1, len(parts)):
        ending = ".".join(parts[first:])
        if role := ENDINGS.get(ending):
            return key[: -len(ending) - 1].removesuffix(".lora_linear_layer"), role
    return None


def group_keys(keys: Iterable[str], origin: str) -> dict[str, LayerKeys]:
    """Layer as the file names it → its keys. Raises PermanentError("lora-invalid") for a key without those that belong to it."""
    layers: dict[str, dict[Role, str]] = {}
    for key in keys:
        parts = split_key(key)
        if parts is None:
            raise invalid_lora(origin, describe_unknown_key(key))
        layer, role = parts
        if other := layers.setdefault(layer, {}).get(role):
            raise invalid_lora(origin, f"the keys {other[:200]!r} and {key[:200]!r} are both the {role} tensor of one layer")
        layers[layer][role] = key
    return {layer: LayerKeys(layer, find_method(roles, origin), roles) for layer, roles in layers.items()}


def describe_unknown_key(key: str) -> str:
    supported = "supported are LoRA, DoRA, LoHa and LoKr"
    method = next((name for name, pattern in REFUSED_METHODS.items() if pattern.search(key)), None)
    if method:
        return f"the key {key[:200]!r} is of the method {method}, which cannot be applied row by row; {supported}"
    return f"the key {key[:200]!r} belongs to no method that is known; {supported}"


def find_method(roles: Mapping[Role, str], origin: str) -> Method:
    """Raises PermanentError("lora-invalid") when a layer's tensors are incomplete, or of several methods."""
    found = frozenset(roles) - {"alpha"}
    if method := COMPLETE.get(found):
        return method
    wider = [tensors for tensors in COMPLETE if tensors > found]
    if not wider:
        names = ", ".join(repr(key[:200]) for key in list(roles.values())[:4])
        raise invalid_lora(origin, f"the keys {names} do not go together on one layer")
    missing = min(wider, key=len) - found
    key = next((key for role, key in roles.items() if role != "alpha"), None) or roles["alpha"]
    raise invalid_lora(origin, f"the key {key[:200]!r} has no {' and no '.join(sorted(missing))} tensor beside it")
