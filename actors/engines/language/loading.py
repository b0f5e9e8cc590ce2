"""Loads a vision-language model of a known family: device, precision, quantization with a fallback, and the memory it takes."""

import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from actors.engines.language.batch import NOT_A_NUMBER, inputs_on_device
from actors.engines.language.checkpoint_check import complete_processor, read_sample
from actors.engines.language.families.family import VisionFamily
from actors.engines.language.families.registry import find_family
from actors.engines.language.requests import ResolvedQuantization, VlmOptions
from actors.engines.process.failures import describe_error
from actors.engines.process.gpu import choose_device, choose_dtype, free_memory
from actors.engines.process.model_cache import load_complete
from actors.engines.process.protocol import EngineHost

log = structlog.get_logger()

STEP_SECONDS_BY_DEVICE = {"cuda": 60.0, "cpu": 900.0}
"""The longest time without a heartbeat: there is one after each token, and the first of a long prompt takes minutes on a CPU."""
MEMORY_HEADROOM = 1.25
"""The device memory that unquantized weights need, as a multiple of their size: they and the cache of a batch."""
FREE_SHARE = 0.9
"""The share of the free device memory that is used when a model does not fit."""
UNKNOWN_MODEL_BYTES = 15 << 30
"""Assumed for a hub id: 7 billion parameters in half precision."""
MAX_REASON_CHARS = 500
"""Of the error for which weights are not quantized."""
GIBIBYTE = 1 << 30
LOGGED_NAMES = {"LLaVA-1.5": "LLaVa"}
"""As the ad pipeline's own log writes it."""
BITS = {"none": "no quantization", "8bit": "8-bit quantization", "4bit": "4-bit quantization"}


@dataclass
class LoadedModel:
    """A loaded model. `info`: its properties for the log and the metrics."""

    model: Any
    family: VisionFamily
    device: str
    info: dict[str, Any] = field(default_factory=dict)


def load_model(options: VlmOptions, host: EngineHost) -> LoadedModel:
    """Load processor and model. Raises ValueError for a family that is not served, before anything else is loaded, and for a checkpoint
    that is not whole; and what transformers raises when it cannot be loaded even without quantization.

    The field `message` of the log entries has the words of the ad pipeline's own log.
    """
    import torch
    from transformers import AutoConfig

    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    host.report_load_progress(f"loading {options.model}", options.load_seconds, None)
    family_class = find_family(options)
    name = LOGGED_NAMES.get(family_class.name, family_class.name)
    log.info("model.loading", message=f"Loading {name} model: {options.model} on {device}")
    family = family_class(options)
    if family.completes_processor:
        complete_processor(family.processor, AutoConfig.from_pretrained(options.model, cache_dir=options.cache_dir), options)
    before = used_memory_bytes(device)
    model, quantization = _load_weights(options, device, family)
    memory = measure_memory(device)
    info = {
        "model": options.model, "family": family.name, "device": device, "dtype": str(model.dtype).removeprefix("torch."), **quantization,
        "step_seconds": STEP_SECONDS_BY_DEVICE["cuda" if device.startswith("cuda") else "cpu"],
        "memory_before_bytes": before, "memory_after_bytes": memory["allocated_bytes"], "model_bytes": model.get_memory_footprint(),
    }  # fmt: skip
    log.info("model.loaded", message=describe_load(info, memory), **memory)
    return LoadedModel(model, family, device, info)


def describe_load(info: dict[str, Any], memory: dict[str, float]) -> str:
    """One line: how the model was loaded, and the memory of its device."""
    allocated, peak, total = (memory[name] / GIBIBYTE for name in ("allocated_bytes", "peak_bytes", "total_bytes"))
    loaded = f"Model loaded with {BITS[info['quantization']]} as {info['dtype']}"
    name = "GPU memory" if info["device"].startswith("cuda") else "Memory of the process"
    return f"{loaded}. {name}: allocated {allocated:.2f} GB, peak {peak:.2f} GB, total {total:.2f} GB, usage {memory['share']:.1%}"


def _load_weights(options: VlmOptions, device: str, family: VisionFamily) -> tuple[Any, dict[str, Any]]:
    """The model and its `quantization`. When quantizing fails it is loaded without, and `fallback` says why."""
    wanted, why = choose_quantization(options, device)
    setting = "Disabled" if wanted == "none" else f"Enabled ({wanted.replace('bit', '-bit')})"
    log.info("model.quantization", message=f"Quantization setting: {setting}", quantization=wanted, reason=why)
    if wanted == "none":
        return _load(options, device, "none"), {"quantization": "none", "quantization_reason": why}
    try:
        model = _load(options, device, wanted)
        verify_forward(model, family)
        return model, {"quantization": wanted, "quantization_reason": why}
    except Exception as error:
        reason = f"{type(error).__name__}: {describe_error(error, MAX_REASON_CHARS)}"
    # Outside the except block: the traceback would keep half a model in memory.
    free_memory()
    fallback = f"{BITS[wanted]} failed, so the weights are not quantized: {reason}"
    log.warning("model.unquantized", message=f"{BITS[wanted]} failed. Falling back to standard loading", reason=reason)
    return _load(options, device, "none"), {"quantization": "none", "quantization_reason": fallback, "fallback": fallback}


def choose_quantization(options: VlmOptions, device: str) -> tuple[ResolvedQuantization, str]:
    """The quantization and the reason. `auto`: 8 bits on CUDA, as in the ad pipeline; none on a CPU, where it only costs time."""
    if options.quantization != "auto":
        return options.quantization, "the settings name it"
    if device.startswith("cuda"):
        return "8bit", "auto: 8 bits on CUDA; VLM_QUANTIZATION=none loads half precision"
    return "none", "auto: never on a CPU, where it only costs time; VLM_QUANTIZATION=8bit asks for it by name"


def _load(options: VlmOptions, device: str, quantization: ResolvedQuantization) -> Any:
    from transformers import AutoModelForImageTextToText

    arguments = load_arguments(options, device, quantization)
    return load_complete(AutoModelForImageTextToText.from_pretrained, options.model, **arguments).eval()


def load_arguments(options: VlmOptions, device: str, quantization: ResolvedQuantization) -> dict[str, Any]:
    """What `from_pretrained` gets beside the name of the model."""
    import torch
    from transformers import BitsAndBytesConfig

    arguments = {"cache_dir": options.cache_dir, "attn_implementation": "sdpa"}
    if quantization == "none":
        dtype = choose_dtype(options.dtype, device)
        return arguments | {"dtype": getattr(torch, dtype)} | choose_placement(options, device, dtype)
    config = (
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
        if quantization == "8bit"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    )
    return arguments | {"quantization_config": config, "dtype": torch.float16, "device_map": {"": device}}


def choose_placement(options: VlmOptions, device: str, dtype: str) -> dict[str, Any]:
    """The whole model on its device; on CUDA what does not fit there stays in main memory, which is slow."""
    if not device.startswith("cuda"):
        return {"device_map": {"": device}}
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    limit = options.max_memory_bytes or free
    if MEMORY_HEADROOM * weight_bytes(options, dtype) <= min(limit, free):
        return {"device_map": {"": device}}
    on_device = options.max_memory_bytes or int(FREE_SHARE * free)
    log.warning("model.split", message="The model does not fit on the device; the rest stays in main memory", max_memory_bytes=on_device)
    index = int(device.partition(":")[2] or 0)
    return {"device_map": "auto", "max_memory": {index: on_device, "cpu": available_memory_bytes()}}


def weight_bytes(options: VlmOptions, dtype: str) -> int:
    """The size of the weights: that of the files of a folder, else UNKNOWN_MODEL_BYTES; twice as much in float32."""
    files = list(Path(options.model).glob("*.safetensors")) if Path(options.model).is_dir() else []
    size = sum(file.stat().st_size for file in files) or UNKNOWN_MODEL_BYTES
    return 2 * size if dtype == "float32" else size


def verify_forward(model: Any, family: VisionFamily) -> None:
    """One forward pass over a picture and a text, as the processor reads them: some kernels reject the size of a layer only at their
    first call. Raises what they raise, and ValueError for output that is not a number.
    """
    import torch

    ids, inputs = read_sample(family)
    batch = ids[None].to(model.device)
    mask = torch.ones_like(batch)
    positions, _ = family.positions(model, batch, mask, inputs)
    with torch.inference_mode():
        output = model(
            input_ids=batch, attention_mask=mask, position_ids=positions, logits_to_keep=1, **inputs_on_device(model, inputs)
        )  # fmt: skip
    if not output.logits.isfinite().all():
        raise ValueError(NOT_A_NUMBER)


def measure_memory(device: str) -> dict[str, float]:
    """Bytes allocated now, at the peak and in total, and the share of the total; for a CPU, of this process and its machine."""
    if device.startswith("cuda"):
        import torch

        allocated, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        allocated, peak = used_memory_bytes(device), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"allocated_bytes": allocated, "peak_bytes": max(peak, allocated), "total_bytes": total, "share": round(allocated / total, 4)}


def used_memory_bytes(device: str) -> int:
    """Memory used on the device; for a CPU, by this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(device))
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def available_memory_bytes() -> int:
    """Main memory that is available without swapping."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
