"""What the device does: memory, utilisation, steps and pictures per second. NVML where there is a GPU, nothing where there is none."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from actors.engines.protocol import Gauges

EVERY_SECONDS = 1.0
WINDOW_SECONDS = 10.0


class GpuWatch:
    """Rates are over the last ten seconds."""

    def __init__(self, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = self.pictures = self.calls = 0
        self._clock, self._meter = clock, DeviceMeter(device)
        self._history: deque[tuple[float, int, int]] = deque()
        self._rests = True

    def stepped(self, rows: int) -> None:
        self.steps += rows
        self.calls += 1
        self._rests = False

    def finished(self, pictures: int) -> None:
        self.pictures += pictures
        self._rests = False

    def due_seconds(self) -> float | None:
        """When to tell again though nothing is done: until it has been told that nothing is done. None: it has."""
        if self._rests:
            return None
        return max(0.0, self._history[-1][0] + EVERY_SECONDS - self._clock()) if self._history else 0.0

    def gauges(self, engine: Any) -> list[Gauges]:
        """At most one a second."""
        now = self._clock()
        if self._history and now - self._history[-1][0] < EVERY_SECONDS:
            return []
        self._history.append((now, self.steps, self.pictures))
        while len(self._history) > 2 and now - self._history[0][0] > WINDOW_SECONDS:
            self._history.popleft()
        then, steps, pictures = self._history[0]
        passed = max(now - then, 1e-9)
        rows = len(engine.groups.rows)
        self._rests = not rows and (steps, pictures) == (self.steps, self.pictures)
        counters = {"steps": self.steps, "calls": self.calls, "pictures": self.pictures, "model_loads": engine.models.loads}
        counters |= {f"memory_rung_{name.replace('-', '_')}": count for name, count in engine.rungs.climbed.items()}
        levels = {
            "batch_rows": rows,
            "resident_bytes": engine.models.used_bytes,
            "steps_per_second": (self.steps - steps) / passed,
            "pictures_per_second": (self.pictures - pictures) / passed,
        }
        return [Gauges({name: float(value) for name, value in counters.items()}, levels | self._meter.levels())]


class DeviceMeter:
    """A GPU's memory and utilisation, as NVML tells them. What a card cannot tell is left out."""

    def __init__(self, device: str) -> None:
        self._nvml = open_nvml(int(device.partition(":")[2] or 0)) if device.startswith("cuda") else None

    def levels(self) -> dict[str, float]:
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
        return pynvml, handle_of(pynvml, index)
    except Exception:
        return None


def handle_of(nvml: Any, index: int) -> Any:
    """By the card's own name: NVML counts all cards, torch only those that CUDA_VISIBLE_DEVICES shows."""
    with suppress(Exception):
        import torch

        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    return nvml.nvmlDeviceGetHandleByIndex(index)
