"""The comparison of ratios with the baseline, and the page of figures."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import ratio_guard, report_page


def report(**figures: object) -> dict[str, object]:
    return {"benches": {name: {"figures": values} for name, values in figures.items()}}


def test_regressed_ratio_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ratio_guard, "BASELINE_FILE", tmp_path / "ratios.json")
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps(report(pipeline={"over_inline": 4.0})))
    arguments = Namespace(figures=figures, keep=True, tolerance=0.25, json=False)
    assert ratio_guard.bench(arguments) == 0
    figures.write_text(json.dumps(report(pipeline={"over_inline": 2.9})))
    assert ratio_guard.bench(Namespace(**vars(arguments) | {"keep": False})) == 1
    assert "got worse: pipeline over the inline loop" in capsys.readouterr().out


def test_ratio_within_tolerance_passes() -> None:
    assert not ratio_guard.compare({"x": 1.0}, {"x": 0.8}, 0.25)["x"]["worse"]


def test_unmeasured_ratio_fails() -> None:
    assert ratio_guard.compare({"x": 1.0}, {}, 0.25)["x"]["worse"]


def test_page_update_replaces_tables_only(tmp_path: Path) -> None:
    file = tmp_path / "benchmarks.md"
    file.write_text("Words.\n<!-- pipeline -->\nold\n<!-- /pipeline -->\nMore words.\n<!-- http -->\nkept\n<!-- /http -->\n")
    figures = {"orders_per_second": {"bus": 5.0, "inline": 1.0}, "device_busy": {"bus": 0.9, "inline": 0.5}}
    figures |= {"over_inline": 5.0, "bus_share_of_work": 0.1}
    result = {"command": "atelier bench pipeline", "seconds": 3.0, "figures": figures}
    report_page.update_page({"conditions": CONDITIONS, "benches": {"pipeline": result}}, file)
    text = file.read_text()
    assert "| bus | 5.0 | 0.9 |" in text
    assert "old" not in text
    assert "Words." in text
    assert "More words." in text
    assert "kept" in text
    assert (tmp_path / "benchmarks" / "pipeline.svg").read_text().startswith("<svg")


CONDITIONS = {
    "day": "2026-01-01", "cores": 2, "processor": "x", "memory_gb": 4, "load_before": 0.0, "load_after": 1.0,
    "python": "3.11", "packages": {},
}  # fmt: skip
