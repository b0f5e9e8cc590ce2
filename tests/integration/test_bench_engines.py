"""The benchmarks of the engines run with small numbers and report the documented figures."""

from pathlib import Path

import pytest

from benchmarks import executor, gpu, vlm

# diffusers and transformers issue deprecation warnings about themselves.
pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"), pytest.mark.timeout(480),
]  # fmt: skip


async def test_executor_bench_reports_all_figures(tmp_path: Path, tiny_checkpoints: Path) -> None:
    (tmp_path / "models").symlink_to(tiny_checkpoints)
    figures = await executor.measure(tmp_path, quick=True)
    assert set(figures["loop_lag_ms"]) == {"p50", "p99", "max"}
    assert 0 < figures["inline_busy_share"] < figures["busy_share"] <= 1
    assert set(figures["families"]) == {"tiny-sd15"}
    assert set(figures["families"]["tiny-sd15"]["64×64"]) == {"1", "2", "4", "8"}
    assert figures["families"]["tiny-sd15"]["64×64"]["1"] == 1
    assert min(figures["families"]["tiny-sd15"]["64×64"].values()) > 0
    assert min(figures["family_speedup"]["tiny-sd15"].values()) > 0
    for name in ("step_batching_speedup", "static_batching_speedup", "cancel_to_next_step_seconds"):
        assert figures[name] > 0


async def test_gpu_bench_runs_tiny_models_on_cpu(tmp_path: Path) -> None:
    figures = await gpu.measure(tmp_path, size="tiny", side=64, steps=3, tokens=6)
    assert set(figures["images_per_second"]) == {"1", "4", "10"}
    assert figures["engine"]["device"] == "cpu"
    assert set(figures["families"]) == {"Stable Diffusion 1.5", "Stable Diffusion XL", "Flux.1"}
    for name, family in figures["families"].items():
        size = family["sizes"]["64×64"]
        assert set(size["call_seconds"]) == set(size["relative_cost"]) == {"1", "2", "4", "8"}, name
        assert size["decode_seconds"] > 0
    llava = figures["llava"]
    assert set(llava["tokens_per_second"]) == {"float32", "8bit"}
    for speeds in llava["tokens_per_second"].values():
        assert set(speeds) == {"1", "8", "16"}
        assert min(speeds.values()) > 0
    assert llava["model_bytes"]["8bit"] < llava["model_bytes"]["float32"]


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
async def test_vlm_bench_reports_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(vlm, "REQUEST_COUNT", 4)
    monkeypatch.setattr(vlm, "BATCH_SIZES", (1, 4))
    figures = await vlm.measure(tmp_path, families=[family], tokens=4, rounds=1, hidden=64)
    (measured,) = figures["families"].values()
    for sides in measured["tokens_per_second"].values():
        assert set(sides) == {"engine", "generate"}
        assert min(sides.values()) > 0
    assert set(measured["over_generate"]) == {"1", "4"}
    assert set(measured["batch_speedup"]) == {"4"}
    assert figures["left_out"]["vllm"]
    assert "times)" in vlm.format_text(figures)
