"""Metrics of the executor and of the engine."""

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engines.process.gpu import DeviceMeter, EngineMonitor, gpu_figures, open_nvml
from actors.engines.process.protocol import ProcessExit
from actors.engines.process.stats import ExecutorStats


@dataclass
class FakeClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class BusyEngine:
    """The attributes of an engine that the monitor reads."""

    rows: list[int] = field(default_factory=list)
    applied_counts: dict[str, int] = field(default_factory=dict)

    @property
    def groups(self) -> Any:
        return SimpleNamespace(rows=self.rows)

    @property
    def models(self) -> Any:
        return SimpleNamespace(cache=SimpleNamespace(loads=1, used_bytes=4096), own_row_limit=4)

    @property
    def oom(self) -> Any:
        return SimpleNamespace(applied_counts=self.applied_counts, row_limit=8)


class NvmlError(Exception):
    pass


def fake_gpu(**broken: bool) -> Any:
    """NVML with one card; the queries in `broken` raise."""

    def query(name: str, result: Any) -> Any:
        def run(handle: object) -> Any:
            if broken.get(name):
                raise NvmlError(name)
            return result

        return run

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=query("memory", SimpleNamespace(used=3 << 30, total=24 << 30)),
        nvmlDeviceGetUtilizationRates=query("busy", SimpleNamespace(gpu=87)),
    )


def test_snapshot_contains_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, utilization, steps and images per second, queue seconds, batch size, and out-of-memory fallbacks."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_gpu())
    clock, stats = FakeClock(), ExecutorStats()
    monitor, engine = EngineMonitor("cuda:0", clock), BusyEngine([1, 2, 3], {"batch-4": 2})
    monitor.metrics(engine)
    for _ in range(4):
        monitor.record_step(3)
    monitor.record_images(2)
    clock.now += 2
    for metrics in monitor.metrics(engine):
        stats.set_engine_metrics(metrics)
    for seconds in (0.5, 0.1, 0.3):
        stats.record_queue_seconds(seconds)
    stats.add_busy_seconds(1.5)

    assert stats.snapshot() == {
        "engine_finished_total": 0,
        "engine_cancelled_total": 0,
        "engine_busy_seconds_total": 1.5,
        "engine_deaths_total": {},
        "engine_queue_seconds_median": 0.3,
        "engine_steps_total": 12,
        "engine_calls_total": 4,
        "engine_pictures_total": 2,
        "engine_model_loads_total": 1,
        "engine_memory_rung_batch_4_total": 2,
        "engine_batch_rows": 3,
        "engine_row_limit": 4,
        "engine_resident_bytes": 4096,
        "engine_steps_per_second": 6,
        "engine_pictures_per_second": 1,
        "engine_device_memory_used_bytes": 3 << 30,
        "engine_device_memory_bytes": 24 << 30,
        "engine_device_busy_share": 0.87,
    }


def test_without_gpu_there_are_no_device_gauges_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvml(0) is None
    for device in ("cpu", "cuda:0"):
        assert DeviceMeter(device).gauges() == {}


def test_unsupported_gpu_metric_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_gpu(busy=True))
    assert set(DeviceMeter("cuda:0").gauges()) == {"device_memory_used_bytes", "device_memory_bytes"}
    monkeypatch.setitem(sys.modules, "pynvml", fake_gpu(memory=True))
    assert set(DeviceMeter("cuda:0").gauges()) == {"device_busy_share"}


def test_figures_of_all_gpus_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """In GB and percent; what no card reports is None, and a CPU has no GPU."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_gpu())
    card = DeviceMeter("cuda:0").gauges()
    assert gpu_figures([card, card | {"device_busy_share": 0.13}]) == {
        "gpu_count": 2,
        "gpu_memory_used": 6.44,
        "gpu_memory_total": 51.54,
        "gpu_utilization": 50.0,
    }
    unknown = {"gpu_memory_used": None, "gpu_memory_total": None, "gpu_utilization": None}
    assert gpu_figures([{}]) == {"gpu_count": 1} | unknown
    assert gpu_figures([]) == {"gpu_count": 0} | unknown


def test_rates_drop_to_zero_when_idle() -> None:
    clock, engine = FakeClock(), BusyEngine([1])
    monitor = EngineMonitor("cpu", clock)
    assert monitor.next_report_seconds() is None
    monitor.record_step(5)
    monitor.metrics(engine)
    engine.rows = []
    reports = []
    while (seconds := monitor.next_report_seconds()) is not None:
        clock.now += seconds
        reports += monitor.metrics(engine)
        assert len(reports) < 20
    assert reports[-1].gauges["steps_per_second"] == reports[-1].gauges["batch_rows"] == 0


def test_idle_time_does_not_dilute_rate() -> None:
    clock, engine = FakeClock(), BusyEngine([1])
    monitor = EngineMonitor("cpu", clock)
    monitor.metrics(engine)
    clock.now += 3600
    for _ in range(3):
        monitor.metrics(engine)
        monitor.record_step(10)
        clock.now += 1
    (metrics,) = monitor.metrics(engine)
    assert metrics.gauges["steps_per_second"] == 10


def test_exited_process_reports_no_metrics() -> None:
    stats, monitor = ExecutorStats(), EngineMonitor("cpu")
    monitor.record_step(2)
    for metrics in monitor.metrics(BusyEngine([1])):
        stats.set_engine_metrics(metrics)
    assert "engine_batch_rows" in stats.snapshot()
    stats.record_exit(ProcessExit("killed", "from outside"))
    assert "engine_batch_rows" not in stats.snapshot()
    assert stats.snapshot()["engine_deaths_total"] == {"killed": 1}
