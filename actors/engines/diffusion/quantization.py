"""Quantized linear layers of a denoiser's blocks: int8 and NF4 of bitsandbytes, float8 as storage of diffusers' layerwise casting.

Layers outside of the blocks, such as those that read the latents and give the prediction, keep their dtype.
"""

from collections.abc import Iterator
from typing import Any

import structlog
import torch

from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.memory import Quantization

log = structlog.get_logger()


def quantize_denoiser(family: Family, scheme: Quantization, device: str) -> str | None:
    """Quantize the denoiser before it is moved to `device`; int8 and NF4 layers are there afterwards.

    The result is the cause when it cannot be done, and then no layer is changed.
    """
    if scheme == "none":
        return None
    try:
        if scheme == "fp8":
            family.denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=family.dtype)
            return None
        layers = list(block_layers(family.denoiser))
        try_layer(layers[0][1], scheme, device)
    except Exception as error:
        log.warning("model.not_quantized", family=family.name, scheme=scheme, exc_info=error)
        return f"IMAGE_QUANTIZE={scheme} cannot be used with {family.name} here ({type(error).__name__}): it is not quantized"
    for name, layer in layers:
        family.denoiser.set_submodule(name, quantize_linear(layer, scheme, device))
    return None


def block_layers(denoiser: Any) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers of the denoiser's lists of blocks, by name."""
    for name, layer in denoiser.named_modules():
        if type(layer) is torch.nn.Linear and any(part.isdecimal() for part in name.split(".")):
            yield name, layer


def try_layer(layer: torch.nn.Linear, scheme: Quantization, device: str) -> None:
    """Quantize one layer and run it. Raises what fails; ValueError for numbers that are not finite."""
    with torch.inference_mode():
        result = quantize_linear(layer, scheme, device)(torch.ones(1, layer.in_features, dtype=layer.weight.dtype, device=device))
    if not bool(result.isfinite().all()):
        raise ValueError("the result of a quantized layer is not finite")


def quantize_linear(layer: torch.nn.Linear, scheme: Quantization, device: str) -> Any:
    """A layer of bitsandbytes with the weights of `layer`, on the device, which quantizes them."""
    import bitsandbytes

    sizes = {"input_features": layer.in_features, "output_features": layer.out_features, "bias": layer.bias is not None}
    if scheme == "nf4":
        quantized = bitsandbytes.nn.Linear4bit(**sizes, compute_dtype=layer.weight.dtype, quant_type="nf4", device="meta")
        quantized.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=quantized)
    else:
        quantized = bitsandbytes.nn.Linear8bitLt(**sizes, has_fp16_weights=False, device="meta")
        quantized.weight = bitsandbytes.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    quantized.bias = layer.bias
    return quantized.to(device).requires_grad_(False)
