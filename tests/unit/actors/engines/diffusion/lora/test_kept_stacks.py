"""What is kept of adapters between calls: its limits, and that it is dropped when memory runs out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.lora import stacking
from actors.engines.diffusion.lora.slots import LoraSlots
from actors.engines.diffusion.oom import OomFallbacks
from actors.engines.diffusion.requests import LoraFile
from tests.unit.actors.engines.diffusion.lora.test_rows import inputs, net_family, save_adapter

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

Call = list[tuple[float, ...]]
"""For each row the scale of the adapter; none: the row has no adapter."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoraFile]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(name, folder) for name in ("lora", "dora")}


class Calls:
    """Calls of a net whose rows have one adapter, which an order uses; `built` counts the layers that were stacked."""

    def __init__(self, file: LoraFile, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slots, self.file, self.built = LoraSlots(net_family(), 2), file, 0
        self.adapter = self.slots.acquire(file)
        self.slots_bytes = self.slots.size_bytes
        build = self.slots._build

        def count(*arguments: Any) -> Any:
            self.built += 1
            return build(*arguments)

        monkeypatch.setattr(self.slots, "_build", count)

    @property
    def kept_bytes(self) -> int:
        return self.slots.size_bytes - self.slots_bytes

    def __call__(self, rows: Call) -> list[torch.Tensor]:
        self.slots.set_row_adapters([tuple((self.adapter, scale) for scale in row) for row in rows])
        with torch.no_grad():
            return self.slots.pipeline.transformer(*inputs(len(rows)))  # type: ignore[no-any-return]

    def measure(self, rows: Call) -> int:
        """The bytes that a call keeps."""
        before = self.kept_bytes
        self(rows)
        return self.kept_bytes - before


@pytest.fixture
def calls(files: dict[str, LoraFile], monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(files["lora"], monkeypatch)


def test_stacks_are_kept_while_calls_have_the_same_rows(calls: Calls) -> None:
    for _ in range(3):
        calls([(0.8,), ()])
        calls([(0.4,)])
    assert calls.built == 8, "four layers, two calls that take turns"
    for scale in range(1, 7):
        calls([(float(scale),)])
    assert len(calls.slots._stacked._calls) == stacking.MAX_CALLS


def test_one_limit_holds_for_all_calls_together(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    size = calls.measure([(0.5,)])
    assert size > 0
    monkeypatch.setattr(stacking, "MAX_KEPT_BYTES", 2 * size)
    for scale in range(1, 5):
        calls([(float(scale),)])
        assert calls.kept_bytes <= 2 * size
    built = calls.built
    calls([(3.0,)])
    calls([(4.0,)])
    assert calls.built == built, "the last two calls are kept"
    calls([(1.0,)])
    assert calls.built > built, "the oldest gave way"


def test_a_call_beyond_the_limit_is_stacked_in_each_step(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = calls([(0.8,), (0.3,)])
    calls.slots._stacked.clear()
    monkeypatch.setattr(stacking, "MAX_KEPT_BYTES", 100)
    for _ in range(2):
        for own, other in zip(calls([(0.8,), (0.3,)]), expected, strict=True):
            assert torch.equal(own, other)
    assert calls.kept_bytes <= 100


def test_gains_of_dora_are_counted(files: dict[str, LoraFile], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(files["dora"], monkeypatch)
    gains = sum(8 * outputs for outputs in (18, 8, 8, 6))
    calls([(0.8,), ()])
    kept = calls.kept_bytes
    calls.slots._stacked.clear()
    assert calls.kept_bytes == gains, "one number for each output, of one scale"
    assert kept >= gains + 2 * gains, "and one for each output and row in the stack"


def test_stacks_are_dropped_with_the_last_order(calls: Calls) -> None:
    calls([(0.8,)])
    calls.slots.acquire(calls.file)
    calls.slots.release(calls.file)
    assert calls.kept_bytes > 0
    calls.slots.release(calls.file)
    assert calls.kept_bytes == 0


def test_dropped_stacks_are_a_fallback_once(calls: Calls) -> None:
    """A step that never fits ends, though each try stacks anew; the batch is halved after the stacks were dropped."""
    assert calls.slots.drop_stacked() is None, "nothing is kept"
    calls([(0.8,)])
    fallbacks = OomFallbacks(4)
    names: list[str | None] = []

    def step() -> None:
        calls([(0.8,)])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def next_fallback() -> str | None:
        names.append(calls.slots.drop_stacked() or fallbacks.halve_batch(4))
        assert calls.kept_bytes == 0
        return names[-1]

    with pytest.raises(Exception, match="every fallback applied"):
        fallbacks.run_with_fallbacks(step, next_fallback)
    assert names == ["lora-stack", "batch-2", "batch-1", None]
    calls.slots.release(calls.file)
    calls.slots.acquire(calls.file)
    calls([(0.8,)])
    assert calls.kept_bytes > 0, "the next order keeps its stacks"


def test_fallbacks_of_the_engine_begin_with_the_stacks(calls: Calls) -> None:
    engine: Any = SimpleNamespace(oom=OomFallbacks(4))
    model: Any = SimpleNamespace(loras=calls.slots)
    calls([(0.8,)])
    assert [DiffusionEngine._next_fallback(engine, model, 4) for _ in range(2)] == ["lora-stack", "batch-2"]
