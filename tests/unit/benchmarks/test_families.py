"""The families in the benchmarks: fewer rows where memory runs out, and a bound for a run that hangs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import executor_families, family_costs, gpu_families
from ops.errors import SetupError

GIBIBYTE = 1 << 30


@pytest.mark.models
@pytest.mark.parametrize("most", [8, 4, 2, 1])
def test_rows_that_fit_are_measured_with_their_own_peak(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    peaks: list[int] = []

    def time_rows(_family: Any, _side: int, rows: Sequence[int], _rounds: int) -> dict[int, list[float]]:
        peaks.append(max(rows) * GIBIBYTE)
        if max(rows) > most:
            raise torch.cuda.OutOfMemoryError
        return {count: [float(count)] for count in rows}

    monkeypatch.setattr(gpu_families, "time_rows", time_rows)
    monkeypatch.setattr(gpu_families, "time_decoding", lambda *_: 0.1)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", peaks.clear)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: max(peaks))

    figures = gpu_families.measure_size(SimpleNamespace(device=torch.device("cuda")), 512)

    assert figures["call_seconds"] == {str(rows): rows for rows in (1, 2, 4, 8) if rows <= most}
    assert figures["peak_bytes"] == most * GIBIBYTE


def test_calls_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_costs, "LIMIT_SECONDS", 0.05)

    with pytest.raises(SetupError, match=r"took longer than 0\.05 s"):
        family_costs.measure_in_subprocess({}, (64,), 1, 1)


async def test_orders_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def open_executor(*_: object, **__: object) -> AsyncIterator[Any]:
        yield SimpleNamespace(ready=asyncio.Event().wait)

    monkeypatch.setattr(executor_families, "LIMIT_SECONDS", 0.05)
    monkeypatch.setattr(executor_families, "open_executor", open_executor)

    with pytest.raises(SetupError, match=r"took longer than 0\.05 s"):
        await executor_families.measure_schedules({"tiny-sd15": Path("tiny-sd15")}, 1, quick=True)
