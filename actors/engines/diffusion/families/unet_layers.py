"""The names that the layers of a U-Net have in the first Stable Diffusion, which some trainers of LoRAs use."""

import re
from collections.abc import Collection
from typing import Any

ORIGINAL_RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ORIGINAL_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""By the names of diffusers."""


def plain_up_blocks(unet: Any) -> set[int]:
    """The numbers of those without attention."""
    return {number for number, block in enumerate(unet.up_blocks) if not getattr(block, "attentions", None)}


def original_name(name: str, layers_per_block: int, plain_up_blocks: Collection[int]) -> str | None:
    """The layer's name in the first Stable Diffusion. None: it is called the same there, or the layer is of another model."""
    if name in ORIGINAL_LAYERS:
        return ORIGINAL_LAYERS[name]
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
