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


def test_lines_say_what_each_ratio_must_be_and_what_is_missing() -> None:
    comparison = ratio_guard.compare({"x": 1.0, "y": 2.0, "z": 1.0}, {"x": 0.8, "y": 1.4, "w": 3.0}, 0.25)
    heading, *lines = ratio_guard.format_text(comparison).splitlines()
    assert heading.split() == ["measured", "at", "least", "baseline"]
    assert [line.split() for line in lines[:4]] == [
        ["ok", "0.800", "0.750", "1.000", "x"],
        ["worse", "1.400", "1.500", "2.000", "y"],
        ["not", "measured", "-", "0.750", "1.000", "z"],
        ["new", "3.000", "-", "-", "w"],
    ]
    assert lines[4] == "got worse: y"
    assert lines[5].startswith("in the baseline, but not in the figures")
    assert lines[5].endswith(": z")
    assert lines[6] == "not in the baseline (`atelier bench guard --keep` stores it): w"
    assert lines[7] == "the guard fails"


def test_new_ratio_does_not_fail() -> None:
    comparison = ratio_guard.compare({}, {"w": 3.0}, 0.25)
    assert not comparison["w"]["worse"]
    assert ratio_guard.format_text(comparison).endswith("no ratio got worse")


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
