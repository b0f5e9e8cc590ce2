"""The device of an engine: choice, freeing of memory, and metrics. NVML gives memory and utilization where there is a GPU."""

import gc
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from actors.engines.process.protocol import EngineMetrics

REPORT_INTERVAL_SECONDS = 1.0
RATE_WINDOW_SECONDS = 10.0


def choose_device(device: str) -> str:
    """The device, where `auto` is the first CUDA device, else the CPU."""
    import torch

    if device != "auto":
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def choose_dtype(dtype: str, device: str) -> str:
    """The dtype by name, where `auto` is float16 on CUDA and float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return "float16" if device.startswith("cuda") else "float32"


def free_memory() -> None:
    """Collect unreachable objects and return cached device memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class EngineMonitor:
    """Counts the steps and images of the diffusion engine. Rates are over the last ten seconds."""

    def __init__(self, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = self.images = self.calls = 0
        self._clock, self._meter = clock, DeviceMeter(device)
        self._history: deque[tuple[float, int, int]] = deque()
        self._idle = True

    def record_step(self, rows: int) -> None:
        self.steps += rows
        self.calls += 1
        self._idle = False

    def record_images(self, images: int) -> None:
        self.images += images
        self._idle = False

    def next_report_seconds(self) -> float | None:
        """Seconds until an idle engine reports again; None: its idle state has been reported."""
        if self._idle:
            return None
        return max(0.0, self._history[-1][0] + REPORT_INTERVAL_SECONDS - self._clock()) if self._history else 0.0

    def metrics(self, engine: Any) -> list[EngineMetrics]:
        """The metrics, at most once a second. `engine`: a DiffusionEngine, whose `groups`, `models` and `oom` are read."""
        now = self._clock()
        if self._history and now - self._history[-1][0] < REPORT_INTERVAL_SECONDS:
            return []
        self._history.append((now, self.steps, self.images))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW_SECONDS:
            self._history.popleft()
        since, steps, images = self._history[0]
        elapsed = max(now - since, 1e-9)
        rows = len(engine.groups.rows)
        self._idle = not rows and (steps, images) == (self.steps, self.images)
        counters = {"steps": self.steps, "calls": self.calls, "pictures": self.images, "model_loads": engine.models.cache.loads}
        counters |= {f"memory_rung_{name.replace('-', '_')}": count for name, count in engine.oom.applied_counts.items()}
        gauges = {
            "batch_rows": rows,
            "row_limit": min(engine.oom.row_limit, engine.models.own_row_limit),
            "resident_bytes": engine.models.cache.used_bytes,
            "steps_per_second": (self.steps - steps) / elapsed,
            "pictures_per_second": (self.images - images) / elapsed,
        }
        return [EngineMetrics({name: float(value) for name, value in counters.items()}, gauges | self._meter.gauges())]


class DeviceMeter:
    """A GPU's memory and utilization from NVML. What a card does not support is left out."""

    def __init__(self, device: str) -> None:
        self._nvml = open_nvml(int(device.partition(":")[2] or 0)) if device.startswith("cuda") else None

    def gauges(self) -> dict[str, float]:
        if self._nvml is None:
            return {}
        nvml, handle = self._nvml
        gauges: dict[str, float] = {}
        with suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            gauges |= {"device_memory_used_bytes": float(memory.used), "device_memory_bytes": float(memory.total)}
        with suppress(nvml.NVMLError):
            gauges["device_busy_share"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        return gauges


def gpu_figures(gauges: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The fields of a text engine's state: the number of GPUs, their memory in GB, and their mean utilization in percent.

    `gauges`: of each GPU's DeviceMeter; none on a CPU. What a card does not report is None.
    """

    def total(name: str) -> float | None:
        values = [gauge[name] for gauge in gauges if name in gauge]
        return sum(values) if values else None

    used, size, busy = total("device_memory_used_bytes"), total("device_memory_bytes"), total("device_busy_share")
    return {
        "gpu_count": len(gauges),
        "gpu_memory_used": None if used is None else round(used / 1e9, 2),
        "gpu_memory_total": None if size is None else round(size / 1e9, 2),
        "gpu_utilization": None if busy is None else round(100 * busy / len(gauges), 1),
    }


def open_nvml(index: int) -> tuple[Any, Any] | None:
    """NVML and the device's handle; None without the library (`nvidia-ml-py`) or a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, device_handle(pynvml, index)
    except Exception:
        return None


def device_handle(nvml: Any, index: int) -> Any:
    """The handle by UUID: NVML numbers all cards, torch only those that CUDA_VISIBLE_DEVICES shows."""
    with suppress(Exception):
        import torch

        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    return nvml.nvmlDeviceGetHandleByIndex(index)
