"""Loads a LLaVA-architecture model: device, precision, quantization with a fallback, and the memory it takes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.engines.language.requests import VlmOptions
from actors.engines.process.gpu import choose_device, choose_dtype, free_memory
from actors.engines.process.protocol import EngineHost

STEP_SECONDS_BY_DEVICE = {"cuda": 60.0, "cpu": 900.0}
"""The longest time without a heartbeat: there is one after each token, and the first of a long prompt takes minutes on a CPU."""
MEMORY_HEADROOM = 1.25
"""The free memory that half precision needs, as a multiple of the weights: they and the cache of a batch."""


@dataclass
class LoadedModel:
    """A loaded model. `info`: its properties for the log and the metrics."""

    model: Any
    processor: Any
    device: str
    info: dict[str, Any] = field(default_factory=dict)


def load_model(options: VlmOptions, host: EngineHost) -> LoadedModel:
    """Load processor and model. Raises what transformers raises when it cannot be loaded even without quantization."""
    import torch
    from transformers import AutoProcessor

    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    host.report_load_progress(f"loading {options.model}", options.load_seconds, None)
    processor = AutoProcessor.from_pretrained(options.model, cache_dir=options.cache_dir)
    processor.tokenizer.padding_side = "left"
    before = used_memory_bytes(device)
    model, quantization = _load_weights(options, device)
    model.eval()
    info = {
        "model": options.model, "device": device, "dtype": str(model.dtype).removeprefix("torch."), **quantization,
        "step_seconds": STEP_SECONDS_BY_DEVICE["cuda" if device.startswith("cuda") else "cpu"],
        "memory_before_bytes": before, "memory_after_bytes": used_memory_bytes(device), "model_bytes": model.get_memory_footprint(),
    }  # fmt: skip
    return LoadedModel(model, processor, device, info)


def _load_weights(options: VlmOptions, device: str) -> tuple[Any, dict[str, Any]]:
    """The model and its `quantization`. When quantizing fails it is loaded without, and `fallback` says why."""
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
    free_memory()
    return _load_unquantized(options, device), {
        "quantization": "none",
        "fallback": f"{wanted} failed, so the weights are not quantized: {reason}",
    }


def _load_unquantized(options: VlmOptions, device: str) -> Any:
    import torch
    from transformers import LlavaForConditionalGeneration

    dtype = choose_dtype(options.dtype, device)
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
    """Run one token and one image: some kernels reject the size of a layer only at their first call."""
    import torch

    side, dtype = model.config.vision_config.image_size, model.dtype
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 1, dtype=torch.long, device=device))
        model.get_image_features(pixel_values=torch.zeros(1, 3, side, side, dtype=dtype, device=device))


def _choose_quantization(options: VlmOptions, device: str) -> str:
    """`auto` keeps half precision where it fits, since 8 bits save memory, not time, and never quantizes on a CPU."""
    if options.quantization != "auto":
        return options.quantization
    if not device.startswith("cuda"):
        return "none"
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return "none" if free > MEMORY_HEADROOM * half_precision_bytes(options) else "8bit"


def half_precision_bytes(options: VlmOptions) -> int:
    """The bytes of the weights in half precision: the size of the files in a folder, else that of 7 billion parameters."""
    files = list(Path(options.model).glob("*.safetensors")) if Path(options.model).is_dir() else []
    return sum(file.stat().st_size for file in files) or 15 << 30


def used_memory_bytes(device: str) -> int:
    """Memory used on the device; for a CPU, by this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(device))
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0
