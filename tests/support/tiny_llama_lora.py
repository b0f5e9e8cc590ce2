"""A tiny Llama with random weights, in the real classes and file formats, with a chat template. Writes a model folder of about 0.3 MB.

Its vocabulary is bytes, so it reads and writes any language; what it says means nothing.
"""

from pathlib import Path


def write_tiny_llama_lora(folder: Path, *, seed: int = 1, hidden_size: int = 64, num_layers: int = 2, rank: int = 4) -> None:
    """An adapter for such a model, in the form of PEFT, strong enough to change what is written."""
    import json

    import torch
    from safetensors.torch import save_file

    dice = torch.Generator().manual_seed(seed)
    names = [f"base_model.model.model.layers.{layer}.self_attn.{part}_proj" for layer in range(num_layers) for part in "qv"]
    shapes = {"lora_A": (rank, hidden_size), "lora_B": (hidden_size, rank)}
    weights = {f"{name}.{side}.weight": torch.randn(shape, generator=dice) for name in names for side, shape in shapes.items()}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4 * rank, "target_modules": ["q_proj", "v_proj"]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.0, "bias": "none", "inference_mode": True}))
