"""LoRA files for tests: safetensors files of zeros, an adapter for the tiny Llama, and the forms that trainers give a LoRA of kohya."""

import json
import struct
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]


def write_safetensors(file: Path, tensors: dict[str, Any], *, body: bytes | None = None) -> Path:
    """A safetensors file of zeros. `tensors`: name → (dtype, shape)."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    header_bytes = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(header_bytes)) + header_bytes + (b"\0" * offset if body is None else body))
    return file


def lora_pair(rank: int = 4, prefix: str = "unet.mid.to_q", dtype: str = "F32") -> dict[str, Any]:
    """The two tensors of one LoRA layer."""
    return {f"{prefix}.lora_A.weight": (dtype, [rank, 8]), f"{prefix}.lora_B.weight": (dtype, [8, rank])}


def write_tiny_llama_lora(folder: Path, *, seed: int = 1, hidden_size: int = 64, num_layers: int = 2, rank: int = 4) -> None:
    """A PEFT adapter for `write_tiny_llama`'s model, strong enough to change its output."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    names = [f"base_model.model.model.layers.{layer}.self_attn.{part}_proj" for layer in range(num_layers) for part in "qv"]
    shapes = {"lora_A": (rank, hidden_size), "lora_B": (hidden_size, rank)}
    weights = {f"{name}.{side}.weight": torch.randn(shape, generator=generator) for name in names for side, shape in shapes.items()}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4 * rank, "target_modules": ["q_proj", "v_proj"]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.0, "bias": "none", "inference_mode": True}))


def original_names(tensors: Tensors) -> Tensors:
    """The mid block of the first Stable Diffusion, as extraction scripts name it."""
    return {
        key.replace("mid_block_attentions_0_", "middle_block_1_"): tensor for key, tensor in tensors.items() if "mid_block" in key
    }  # fmt: skip


def with_convolution(tensors: Tensors) -> Tensors:
    import torch

    name = "lora_unet_mid_block_resnets_0_conv1"
    halves = {"lora_down.weight": torch.randn(2, 8, 3, 3), "lora_up.weight": torch.randn(8, 2, 1, 1), "alpha": torch.tensor(1.0)}
    return tensors | {f"{name}.{half}": tensor for half, tensor in halves.items()}


def with_flat_projection(tensors: Tensors) -> Tensors:
    import torch

    name = "lora_unet_mid_block_attentions_0_proj_in"
    return tensors | {f"{name}.lora_down.weight": torch.randn(2, 8), f"{name}.lora_up.weight": torch.randn(8, 2)}


def half_precision(tensors: Tensors) -> Tensors:
    import torch

    return {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}


def with_magnitudes(tensors: Tensors) -> Tensors:
    import torch

    ups = {key: tensor for key, tensor in tensors.items() if key.endswith(".lora_up.weight")}
    return tensors | {key.replace("lora_up.weight", "dora_scale"): torch.full((len(tensor), 1), 0.5) for key, tensor in ups.items()}


def as_loha(tensors: Tensors) -> Tensors:
    changed: Tensors = {}
    for key, tensor in tensors.items():
        for half, side in (("lora_up.weight", "a"), ("lora_down.weight", "b")):
            if key.endswith(half):
                changed |= {key.replace(half, f"hada_w{number}_{side}"): tensor.clone() for number in (1, 2)}
    return changed


def as_lokr(tensors: Tensors) -> Tensors:
    import torch

    changed: Tensors = {}
    for key, up in tensors.items():
        if key.endswith(".lora_up.weight"):
            layer, inputs = key.removesuffix(".lora_up.weight"), tensors[key.replace("lora_up", "lora_down")].shape[1]
            changed |= {f"{layer}.lokr_w1": torch.randn(4, 2), f"{layer}.lokr_w2": torch.randn(len(up) // 4, inputs // 2) / 8}
    return changed
