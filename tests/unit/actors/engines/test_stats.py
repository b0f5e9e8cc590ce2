"""What the executor and the engine tell of themselves, as metrics read it."""

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engines.gpu_watch import DeviceMeter, GpuWatch, open_nvml
from actors.engines.protocol import Death
from actors.engines.stats import Stats


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Busy:
    """As much of an engine as the watch looks at."""

    rows: list[int] = field(default_factory=list)
    climbed: dict[str, int] = field(default_factory=dict)

    @property
    def groups(self) -> Any:
        return SimpleNamespace(rows=self.rows)

    @property
    def models(self) -> Any:
        return SimpleNamespace(loads=1, used_bytes=4096)

    @property
    def rungs(self) -> Any:
        return SimpleNamespace(climbed=self.climbed)


class NvmlError(Exception):
    pass


def card(**broken: bool) -> Any:
    """A driver's library with one card."""

    def tell(name: str, said: Any) -> Any:
        def telling(handle: object) -> Any:
            if broken.get(name):
                raise NvmlError(name)
            return said

        return telling

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=tell("memory", SimpleNamespace(used=3 << 30, total=24 << 30)),
        nvmlDeviceGetUtilizationRates=tell("busy", SimpleNamespace(gpu=87)),
    )


def test_the_snapshot_has_everything_that_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, utilisation, steps and pictures per second, queue wait, batch size, and what was done for want of memory."""
    monkeypatch.setitem(sys.modules, "pynvml", card())
    clock, stats = Clock(), Stats()
    watch, engine = GpuWatch("cuda:0", clock), Busy([1, 2, 3], {"batch-4": 2})
    watch.gauges(engine)
    for _ in range(4):
        watch.stepped(3)
    watch.finished(2)
    clock.now += 2
    for gauges in watch.gauges(engine):
        stats.measured(gauges)
    for seconds in (0.5, 0.1, 0.3):
        stats.waited(seconds)
    stats.busy(1.5)

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
        "engine_resident_bytes": 4096,
        "engine_steps_per_second": 6,
        "engine_pictures_per_second": 1,
        "engine_device_memory_used_bytes": 3 << 30,
        "engine_device_memory_bytes": 24 << 30,
        "engine_device_busy_share": 0.87,
    }


def test_without_a_gpu_its_values_are_absent_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvml(0) is None
    for device in ("cpu", "cuda:0"):
        assert DeviceMeter(device).levels() == {}


def test_a_card_that_tells_only_some_is_asked_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", card(busy=True))
    assert set(DeviceMeter("cuda:0").levels()) == {"device_memory_used_bytes", "device_memory_bytes"}
    monkeypatch.setitem(sys.modules, "pynvml", card(memory=True))
    assert set(DeviceMeter("cuda:0").levels()) == {"device_busy_share"}


def test_rates_fall_to_nought_when_the_work_is_done_and_then_nothing_is_told() -> None:
    clock, engine = Clock(), Busy([1])
    watch = GpuWatch("cpu", clock)
    assert watch.due_seconds() is None
    watch.stepped(5)
    watch.gauges(engine)
    engine.rows = []
    told = []
    while (wait := watch.due_seconds()) is not None:
        clock.now += wait
        told += watch.gauges(engine)
        assert len(told) < 20
    assert told[-1].levels["steps_per_second"] == told[-1].levels["batch_rows"] == 0


def test_a_long_rest_does_not_water_the_rate_down() -> None:
    clock, engine = Clock(), Busy([1])
    watch = GpuWatch("cpu", clock)
    watch.gauges(engine)
    clock.now += 3600
    for _ in range(3):
        watch.gauges(engine)
        watch.stepped(10)
        clock.now += 1
    (gauges,) = watch.gauges(engine)
    assert gauges.levels["steps_per_second"] == 10


def test_a_dead_process_measures_nothing_any_more() -> None:
    stats, watch = Stats(), GpuWatch("cpu")
    watch.stepped(2)
    for gauges in watch.gauges(Busy([1])):
        stats.measured(gauges)
    assert "engine_batch_rows" in stats.snapshot()
    stats.died(Death("killed", "from outside"))
    assert "engine_batch_rows" not in stats.snapshot()
    assert stats.snapshot()["engine_deaths_total"] == {"killed": 1}
