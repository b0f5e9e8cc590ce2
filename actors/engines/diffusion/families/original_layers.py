"""The names that transformers have in their first implementations, by those of diffusers: trainers of LoRAs write either.

First implementations often have one layer where diffusers has several: its output is theirs, one behind the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actors.engines.diffusion.families.family import LayerAlias


@dataclass(frozen=True)
class Fused:
    """A part of a layer named `name`, behind `position` others; those before it have as many outputs as the transformer is wide."""

    name: str
    position: int


LayerNames = Mapping[str, str | Fused]
"""Name of a layer in diffusers → name in the first implementation."""


def qkv(name: str, query: str, key: str, value: str) -> LayerNames:
    """Three layers of diffusers that are one layer `name`."""
    return {layer: Fused(name, position) for position, layer in enumerate((query, key, value))}


def original_aliases(
    transformer: Any, layer: str, width: int, blocks: Mapping[str, tuple[str, LayerNames]], others: LayerNames
) -> Iterator[LayerAlias]:
    """The names of a layer of a transformer that is `width` wide.

    `blocks`: list of blocks in diffusers → list in the first implementation, and the layers in a block; `others`: layers outside.
    """
    kind, number, inner = [*layer.split(".", 2), "", ""][:3]
    original, names = blocks.get(kind, ("", {}))
    prefix, found = (f"{original}.{number}.", names.get(inner)) if names else ("", others.get(layer))
    if isinstance(found, Fused):
        start = found.position * width
        yield LayerAlias(f"{prefix}{found.name}", (start, start + transformer.get_submodule(layer).out_features))
    elif found:
        yield LayerAlias(f"{prefix}{found}")


def clip_aliases(layer: str) -> Iterator[LayerAlias]:
    """Some versions of the libraries begin the names of a CLIP text encoder's layers with `text_model.`, some do not."""
    plain = layer.removeprefix("text_model.")
    yield from (LayerAlias(plain), LayerAlias(f"text_model.{plain}"))
