"""Quantized blocks draw nearly the same picture in less memory, and LoRAs apply to them. bitsandbytes runs on a CPU as well."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engines.diffusion.lora.slots import LoraSlots
from actors.engines.diffusion.memory import Quantization, checkpoint_memory, measure_modules
from actors.engines.diffusion.quantization import block_layers, quantize_denoiser
from tests.support.family_orders import TINY, write_family_loras
from tests.support.family_rows import draw_latents, load_family, make_order, tiny_checkpoint

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

SCHEMES: tuple[Quantization, ...] = ("int8", "nf4", "fp8")
TOLERANCES = {"int8": 0.05, "nf4": 0.5, "fp8": 0.2}
"""The largest mean difference of the latents after three steps, relative to their mean; layers of 32 values are coarse."""


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().mean() / other.abs().mean())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["tiny-flux", "tiny-sd15"])
def test_quantized_blocks_draw_nearly_the_same_in_less_memory(name: str, scheme: Quantization) -> None:
    plain, family = load_family(name, torch.float32), load_family(name, torch.float32)
    assert quantize_denoiser(family, scheme, "cpu") is None
    order = make_order(plain)
    difference = relative_difference(draw_latents(family, [order])[0], draw_latents(plain, [order])[0])
    assert 0 < difference < TOLERANCES[scheme]
    assert family.dtype == torch.float32
    measured, before = measure_modules([family.denoiser]), measure_modules([plain.denoiser])
    assert measured < 0.9 * before
    part = family.denoiser_part
    assert checkpoint_memory(tiny_checkpoint(name), "float32", quantized={part: scheme})[part] < before


@pytest.mark.parametrize("scheme", SCHEMES)
def test_loras_apply_to_quantized_layers(scheme: Quantization, tmp_path: Path) -> None:
    """The change that a LoRA makes to a layer's output is that of the layer that is not quantized."""
    changes = {}
    for kind in ("none", scheme):
        family = load_family("tiny-flux", torch.float32)
        file = next(iter(write_family_loras(TINY["tiny-flux"], family.pipeline, tmp_path).values()))
        assert quantize_denoiser(family, kind, "cpu") is None
        loras = LoraSlots(family, 1)
        adapter = loras.acquire(file)
        layer = family.denoiser.transformer_blocks[0].attn.to_q
        x = torch.randn(1, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            plain = layer(x)
            loras.set_row_adapters([((adapter, 1.0),)])
            changes[kind] = layer(x) - plain
    assert float(changes["none"].abs().max()) > 0
    assert torch.allclose(changes[scheme], changes["none"], atol=1e-4)


def test_without_the_library_the_model_stays_as_it_was_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family("tiny-flux", torch.float32)
    layers = len(list(block_layers(family.denoiser)))
    original = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name == "bitsandbytes":
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    warning = quantize_denoiser(family, "nf4", "cpu")
    assert warning is not None
    assert "IMAGE_QUANTIZE=nf4" in warning
    assert "ImportError" in warning
    assert len(list(block_layers(family.denoiser))) == layers > 0
