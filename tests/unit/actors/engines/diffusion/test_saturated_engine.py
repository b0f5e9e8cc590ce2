"""The engine stops stacking rows where they do not pay: calls are split, every order advances, and pictures stay the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.engines.diffusion import loaded_models
from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.diffusion.saturation import Saturation
from actors.engines.diffusion.saturation_calls import measure_model
from actors.engines.process.gpu import EngineMonitor
from tests.support.engine_fixture import draw_images, open_image_engine

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

ORDERS = {
    number: DiffusionRequest(f"order {number}", number, width=64, height=64, steps=2 + number, guidance_scale=1.0) for number in range(3)
}
TOKENS = 16
"""Of a picture of 64 × 64 pixels."""


def record_calls(engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each call of the denoiser."""
    family, calls = engine.models.default().family, list[int]()
    denoise = family.denoise

    def count(x: Any, *arguments: Any) -> Any:
        calls.append(len(x))
        return denoise(x, *arguments)

    monkeypatch.setattr(family, "denoise", count)
    return calls


def set_saturation(engine: DiffusionEngine, saturation: Saturation) -> None:
    engine.models.saturation[engine.settings.model] = saturation


@pytest.mark.parametrize(("tokens", "most"), [(TOKENS, 2), (4 * TOKENS, 3), (TOKENS // 2, 1)])
def test_calls_have_no_more_rows_than_pay(image_engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch, tokens: int, most: int) -> None:
    """With two rows at the size that was measured; a smaller picture gets more rows, a larger one fewer."""
    alone = {number: draw_images(image_engine, {number: order})[number] for number, order in ORDERS.items()}
    set_saturation(image_engine, Saturation(tokens, {1: 1.0, 2: 1.2, 4: 2.4}, "saturated"))
    calls = record_calls(image_engine, monkeypatch)

    together = draw_images(image_engine, ORDERS)

    assert max(calls) == most
    assert sum(calls) == sum(order.steps or 0 for order in ORDERS.values())
    for number, pictures in alone.items():
        assert np.abs(np.asarray(together[number][0]).astype(int) - np.asarray(pictures[0])).max() <= 1


def test_a_loaded_model_is_measured_once_and_reports_its_limit(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "shm", measure_seconds=60.0, max_rows=2)
    try:
        name = engine.settings.model
        measured = engine.info["saturation"][name]
        assert set(measured["relative_costs"]) == {"1", "2"}
        assert measured["tokens"] == 1024
        before = engine.models.saturation[name]
        engine.models._load(name)
        assert engine.models.saturation[name] is before
        set_saturation(engine, Saturation(1024, {1: 1.0, 2: 2.0}, "saturated"))
        (metrics,) = EngineMonitor("cpu").metrics(engine)
        assert metrics.gauges["row_limit"] == 1
    finally:
        engine.close()


def test_a_model_that_cannot_be_measured_is_served_without_a_limit(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("too many rows for this kernel")

    monkeypatch.setattr(loaded_models, "measure_model", fail)
    engine = open_image_engine(tiny_models, tmp_path / "shm", measure_seconds=1.0)
    try:
        assert engine.info["saturation"] == {}
        assert engine.models.own_row_limit == engine.settings.max_rows
        assert len(draw_images(engine, {1: ORDERS[1]})[1]) == 1
    finally:
        engine.close()


def test_on_a_slow_device_no_call_of_full_size_is_made(image_engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the clock is a second later: one small call takes a share of the budget that says enough."""
    readings = iter(range(1000))
    calls = record_calls(image_engine, monkeypatch)

    saturation = measure_model(image_engine.models.default().family, 8, 10.0, clock=lambda: float(next(readings)))

    assert (saturation.row_limit, saturation.stopped_by, dict(saturation.seconds)) == (None, "time", {})
    assert 0 < len(calls) < 5
