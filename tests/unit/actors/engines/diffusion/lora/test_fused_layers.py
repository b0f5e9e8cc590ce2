"""Files for a first implementation, in which one layer is several of diffusers: each method against PEFT on the fused layer itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.engines.diffusion.families.family import LayerAlias
from actors.engines.diffusion.lora.slots import LoraSlots
from actors.engines.diffusion.lora.strength import parse_adapter_config
from actors.engines.diffusion.requests import LoraFile
from bus.errors import PermanentError

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

ROWS = {"to_q": (0, 8), "to_k": (8, 14), "to_v": (14, 20)}
"""Of the fused layer's 20 outputs."""


class FusedNet(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(12, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.qkv(x)


class SplitNet(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        fused = FusedNet()
        for name, (start, stop) in ROWS.items():
            layer = torch.nn.Linear(12, stop - start)
            layer.weight.data, layer.bias.data = fused.qkv.weight.data[start:stop].clone(), fused.qkv.bias.data[start:stop].clone()
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([getattr(self, name)(x) for name in ROWS], dim=-1)


class SplitFamily:
    name, denoiser_part = "Split", "transformer"
    lora_prefixes = {"base_model.model.": "transformer"}  # noqa: RUF012 - as in a family

    def __init__(self) -> None:
        self.pipeline = SimpleNamespace(transformer=SplitNet().double())

    def lora_aliases(self, part: str, layer: str) -> Any:
        yield LayerAlias("qkv", ROWS[layer])

    def lora_excluded(self, part: str, layer: str) -> bool:
        return False


def split_slots() -> LoraSlots:
    family: Any = SplitFamily()
    return LoraSlots(family, 1)


def adapter_configs() -> dict[str, Any]:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    lycoris: dict[str, Any] = {"alpha": 3, "target_modules": ["qkv"], "init_weights": False}
    return {
        "LoRA": LoraConfig(r=3, lora_alpha=5, target_modules=["qkv"], rank_pattern={"qkv": 2}),
        "DoRA": LoraConfig(r=2, lora_alpha=3, target_modules=["qkv"], use_dora=True),
        "LoHa": LoHaConfig(r=2, **lycoris),
        "LoHa of high rank": LoHaConfig(r=12, **lycoris),
        "LoKr": LoKrConfig(r=1, **lycoris),
        "LoKr of two products": LoKrConfig(r=1, decompose_both=True, **lycoris),
    }


def save_and_draw(name: str, folder: Path) -> tuple[LoraFile, torch.Tensor, torch.Tensor]:
    """The file as PEFT saves it, an input of two rows, and PEFT's output for it."""
    from peft import get_peft_model

    model: Any = get_peft_model(FusedNet().double(), adapter_configs()[name])
    generator = torch.Generator().manual_seed(3)
    for key, parameter in model.named_parameters():
        if any(word in key for word in ("lora_", "hada_", "lokr_")):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = 1 + noise.abs() if "magnitude" in key else 0.4 * noise
    model.double().eval().save_pretrained(folder)
    x = torch.randn((2, 5, 12), generator=generator, dtype=torch.float64)
    config = parse_adapter_config((folder / "adapter_config.json").read_bytes(), name)
    with torch.no_grad():
        return LoraFile(folder / "adapter_model.safetensors", name, 1.0, name, config), x, model(x)


@pytest.mark.parametrize("name", adapter_configs())
def test_fused_layer_is_changed_as_in_peft(name: str, tmp_path: Path) -> None:
    file, x, expected = save_and_draw(name, tmp_path)
    slots = split_slots()
    adapter = slots.acquire(file)
    assert set(slots._slots[file.slot_key].changes) == {("transformer", layer) for layer in ROWS}
    slots.set_row_adapters([((adapter, 1.0),), ()])
    with torch.no_grad():
        output = slots.pipeline.transformer(x)
        assert torch.allclose(output[:1], expected[:1], rtol=0, atol=1e-12)
        assert torch.allclose(output[1:], FusedNet().double()(x)[1:], rtol=0, atol=1e-12)
    assert float((output - expected)[1:].abs().max()) > 0.1


def test_file_for_a_fused_layer_of_another_size_is_refused() -> None:
    slots = split_slots()
    shapes = {"base_model.model.qkv.lora_A.weight": (2, 12), "base_model.model.qkv.lora_B.weight": (24, 2)}
    with pytest.raises(PermanentError, match=r"qkv.lora_B.weight' \(24, 2\) do not fit their layer \(20, 12\)"):
        slots.layers.plan(shapes, "o")


def test_fused_layer_and_one_of_its_own_layers_are_not_changed_both() -> None:
    slots = split_slots()
    shapes = {
        f"base_model.model.{layer}.lora_{half}.weight": shape
        for layer, outputs in (("qkv", 20), ("to_k", 6))
        for half, shape in (("A", (2, 12)), ("B", (outputs, 2)))
    }
    with pytest.raises(PermanentError, match="change the same layer"):
        slots.layers.plan(shapes, "o")
