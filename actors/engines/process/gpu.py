"""What the device does: memory, utilisation, steps and pictures per second. NVML where there is a GPU, nothing where there is none."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from actors.engines.process.protocol import EngineMetrics

REPORT_INTERVAL_SECONDS = 1.0
RATE_WINDOW_SECONDS = 10.0


class EngineMonitor:
    """Rates are over the last ten seconds."""

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
        """When to tell again though nothing is done: until it has been told that nothing is done. None: it has."""
        if self._idle:
            return None
        return max(0.0, self._history[-1][0] + REPORT_INTERVAL_SECONDS - self._clock()) if self._history else 0.0

    def metrics(self, engine: Any) -> list[EngineMetrics]:
        """At most one a second."""
        now = self._clock()
        if self._history and now - self._history[-1][0] < REPORT_INTERVAL_SECONDS:
            return []
        self._history.append((now, self.steps, self.images))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW_SECONDS:
            self._history.popleft()
        then, steps, pictures = self._history[0]
        passed = max(now - then, 1e-9)
        rows = len(engine.groups.rows)
        self._idle = not rows and (steps, pictures) == (self.steps, self.images)
        counters = {"steps": self.steps, "calls": self.calls, "pictures": self.images, "model_loads": engine.models.loads}
        counters |= {f"memory_rung_{name.replace('-', '_')}": count for name, count in engine.rungs.climbed.items()}
        levels = {
            "batch_rows": rows,
            "resident_bytes": engine.models.used_bytes,
            "steps_per_second": (self.steps - steps) / passed,
            "pictures_per_second": (self.images - pictures) / passed,
        }
        return [EngineMetrics({name: float(value) for name, value in counters.items()}, levels | self._meter.gauges())]


class DeviceMeter:
    """A GPU's memory and utilisation, as NVML tells them. What a card cannot tell is left out."""

    def __init__(self, device: str) -> None:
        self._nvml = open_nvml(int(device.partition(":")[2] or 0)) if device.startswith("cuda") else None

    def gauges(self) -> dict[str, float]:
        if self._nvml is None:
            return {}
        nvml, handle = self._nvml
        told: dict[str, float] = {}
        with suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            told |= {"device_memory_used_bytes": float(memory.used), "device_memory_bytes": float(memory.total)}
        with suppress(nvml.NVMLError):
            told["device_busy_share"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        return told


def open_nvml(index: int) -> tuple[Any, Any] | None:
    """NVML and the device's handle. None without the library (`nvidia-ml-py`) or without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, device_handle(pynvml, index)
    except Exception:
        return None


def device_handle(nvml: Any, index: int) -> Any:
    """By the card's own name: NVML counts all cards, torch only those that CUDA_VISIBLE_DEVICES shows."""
    with suppress(Exception):
        import torch

        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    return nvml.nvmlDeviceGetHandleByIndex(index)
