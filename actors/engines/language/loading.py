"""Load a LLaVA-architecture model: device, precision, quantization with its fall-back, and what it took of the memory."""

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.engines.language.requests import VlmOptions
from actors.engines.process.protocol import EngineHost

STEP_SECONDS_BY_DEVICE = {"cuda": 60.0, "cpu": 900.0}
"""How long the engine may be silent at work: it speaks after each token, and the first one of a long prompt takes a CPU minutes."""
MEMORY_HEADROOM = 1.25
"""Free memory, in weights, that half precision needs beside a batch's cache."""


@dataclass
class LoadedModel:
    """A model ready to compute. `info` says what was loaded, for the log and the metrics."""

    model: Any
    processor: Any
    device: str
    info: dict[str, Any] = field(default_factory=dict)


def load_model(options: VlmOptions, host: EngineHost) -> LoadedModel:
    """Raises what transformers raises, when the model cannot be loaded even without quantization."""
    import torch
    from transformers import AutoProcessor

    if options.threads:
        torch.set_num_threads(options.threads)
    device = ("cuda:0" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    host.report_load_progress(f"loading {options.model}", options.load_seconds, None)
    processor = AutoProcessor.from_pretrained(options.model, cache_dir=options.cache_dir)
    processor.tokenizer.padding_side = "left"
    before = used_memory_bytes(device)
    model, how = _load_weights(options, device)
    model.eval()
    info = {
        "model": options.model, "device": device, "dtype": str(model.dtype).removeprefix("torch."), **how,
        "step_seconds": STEP_SECONDS_BY_DEVICE["cuda" if device.startswith("cuda") else "cpu"],
        "memory_before_bytes": before, "memory_after_bytes": used_memory_bytes(device), "model_bytes": model.get_memory_footprint(),
    }  # fmt: skip
    return LoadedModel(model, processor, device, info)


def _load_weights(options: VlmOptions, device: str) -> tuple[Any, dict[str, Any]]:
    """The model and how it was quantized. When quantizing fails the weights are loaded plain, and `fallback` says why."""
    wanted = _choose_quantization(options, device)
    if wanted == "none":
        return _load_unquantized(options, device), {"quantization": "none"}
    try:
        model = _load_quantized(options, device, wanted)
        _smoke_test(model, device)
        return model, {"quantization": wanted}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    # Outside the except block: the traceback would keep half a model in memory.
    free_memory(device)
    return _load_unquantized(options, device), {
        "quantization": "none",
        "fallback": f"{wanted} failed, so the weights are loaded plain: {reason}",
    }


def _load_unquantized(options: VlmOptions, device: str) -> Any:
    import torch
    from transformers import LlavaForConditionalGeneration

    dtype = ("float16" if device.startswith("cuda") else "float32") if options.dtype == "auto" else options.dtype
    return LlavaForConditionalGeneration.from_pretrained(
        options.model, cache_dir=options.cache_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa", device_map={"": device}
    )


def _load_quantized(options: VlmOptions, device: str, bits: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

    config = {
        "8bit": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0),
        "4bit": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    }[bits]()
    return LlavaForConditionalGeneration.from_pretrained(
        options.model,
        cache_dir=options.cache_dir,
        quantization_config=config,
        dtype=torch.float16,
        attn_implementation="sdpa",
        device_map={"": device},
    )


def _smoke_test(model: Any, device: str) -> None:
    """One word and one picture, unused: some kernels refuse a layer's size only when they first meet it."""
    import torch

    side, dtype = model.config.vision_config.image_size, model.dtype
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 1, dtype=torch.long, device=device))
        model.get_image_features(pixel_values=torch.zeros(1, 3, side, side, dtype=dtype, device=device))


def _choose_quantization(options: VlmOptions, device: str) -> str:
    """`auto` keeps half precision where it fits, since 8 bits save memory, not time; on a CPU nothing is quantized unasked."""
    if options.quantization != "auto":
        return options.quantization
    if not device.startswith("cuda"):
        return "none"
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return "none" if free > MEMORY_HEADROOM * half_precision_bytes(options) else "8bit"


def half_precision_bytes(options: VlmOptions) -> int:
    """What the weights take in half precision: read from the files where they are here, else that of a model of 7 billion."""
    files = list(Path(options.model).glob("*.safetensors")) if Path(options.model).is_dir() else []
    return sum(file.stat().st_size for file in files) or 15 << 30


def used_memory_bytes(device: str) -> int:
    """Taken on the device; on a CPU, by this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(device))
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def free_memory(device: str) -> None:
    """Give back what is no longer used."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
