"""LoRA files for tests: safetensors files of zeros, and an adapter with random weights for the tiny Llama."""

import json
import struct
from pathlib import Path
from typing import Any


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
