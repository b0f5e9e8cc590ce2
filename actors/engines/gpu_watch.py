"""What the device does: memory, utilisation, steps and pictures per second. NVML where there is a GPU, nothing where there is none."""

import time
from collections import deque
from typing import Any

from actors.engines.protocol import Gauges

EVERY_SECONDS = 1.0
WINDOW_SECONDS = 10.0


class GpuWatch:
    """Rates are over the last ten seconds."""

    def __init__(self, device: str) -> None:
        self.device, self.index = device, int(device.partition(":")[2] or 0)
        self.steps = self.pictures = 0
        self._history: deque[tuple[float, int, int]] = deque(maxlen=int(WINDOW_SECONDS / EVERY_SECONDS) + 1)
        self._nvml = open_nvml(self.index) if device.startswith("cuda") else None

    def stepped(self, rows: int) -> None:
        self.steps += rows

    def finished(self, pictures: int) -> None:
        self.pictures += pictures

    def gauges(self, engine: Any) -> list[Gauges]:
        """At most one a second."""
        now = time.monotonic()
        if self._history and now - self._history[-1][0] < EVERY_SECONDS:
            return []
        self._history.append((now, self.steps, self.pictures))
        then, steps, pictures = self._history[0]
        passed = max(now - then, 1e-9)
        counters = {"steps": self.steps, "pictures": self.pictures, "model_loads": engine.models.loads}
        counters |= {f"memory_rung_{name.replace('-', '_')}": count for name, count in engine.rungs.climbed.items()}
        levels = {
            "batch_rows": len(engine.groups.rows),
            "resident_bytes": engine.models.used_bytes,
            "steps_per_second": (self.steps - steps) / passed,
            "pictures_per_second": (self.pictures - pictures) / passed,
        }
        return [Gauges({name: float(value) for name, value in counters.items()}, levels | self._device_levels())]

    def _device_levels(self) -> dict[str, float]:
        if self._nvml is None:
            return {}
        nvml, handle = self._nvml
        memory, busy = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetUtilizationRates(handle)
        return {
            "device_memory_used_bytes": float(memory.used),
            "device_memory_bytes": float(memory.total),
            "device_busy_share": busy.gpu / 100,
        }


def open_nvml(index: int) -> tuple[Any, Any] | None:
    """NVML and the device's handle. None without the library (`nvidia-ml-py`) or without a driver."""
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
    except Exception:
        return None
