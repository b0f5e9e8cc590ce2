"""`atelier bench guard`: compares the ratios that `atelier bench all` measured with the baseline in `ratios.json` beside this file.

Ratios, not times: both sides of each were measured in one run, so they can be compared across machines.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from benchmarks.harness import print_figures

BASELINE_FILE = Path(__file__).with_name("ratios.json")
RATIOS = {
    "bus, one way": "bus.median_cpu_share.bus.send",
    "bus, request and reply": "bus.median_cpu_share.bus.ask",
    "bus with inbox, one way": "bus.median_cpu_share.bus_kept.send",
    "bus with inbox, request and reply": "bus.median_cpu_share.bus_kept.ask",
    "bus with inbox over the bus without it, 64 in flight": "bus.kept_share_of_unkept.64",
    "pipeline over the inline loop": "pipeline.over_inline",
    "HTTP over the inline server, 32 clients": "http.over_inline.32",
    "text over vLLM asked directly, 16 clients": "text.over_direct.16",
    "gateway's bus client, 64 callers": "gateway.bus_share_of_aio_pika.64",
    "gateway's HTTP, 64 callers": "gateway.http_share_of_aio_pika.64",
    "gateway's HTTP, 256 callers": "gateway.http_share_of_aio_pika.256",
    "a backlog of 100,000": "growth.backlog_share.100000",
    "step batching over one by one": "executor.step_batching_speedup",
}
"""The name of each ratio and its path in the figures. Higher is better."""


def bench(arguments: Namespace) -> int:
    """Returns 1 when a ratio got worse by more than the tolerance."""
    ratios = extract_ratios(json.loads(arguments.figures.read_text()))
    if arguments.keep:
        BASELINE_FILE.write_text(json.dumps(ratios, indent=2) + "\n")
        sys.stdout.write(f"{len(ratios)} ratios written to {BASELINE_FILE.name}\n")
        return 0
    comparison = compare(json.loads(BASELINE_FILE.read_text()), ratios, arguments.tolerance)
    print_figures(comparison, as_json=arguments.json, format_text=format_text)
    return int(any(row["worse"] for row in comparison.values()))


def extract_ratios(report: Mapping[str, Any]) -> dict[str, float]:
    figures = {name: result["figures"] for name, result in report["benches"].items() if "figures" in result}
    ratios = {name: value_at(figures, path) for name, path in RATIOS.items()}
    return {name: value for name, value in ratios.items() if value is not None}


def value_at(figures: Mapping[str, Any], path: str) -> float | None:
    bench, *rest = path.split(".")
    try:
        return float(reduce(lambda node, name: node[name], rest, figures[bench]))
    except KeyError:
        return None


def compare(baseline: Mapping[str, float], current: Mapping[str, float], tolerance: float) -> dict[str, dict[str, Any]]:
    """A ratio of the baseline that was not measured counts as worse; one that only was measured has `kept` None and counts as none."""
    rows = {}
    for name in [*baseline, *(name for name in current if name not in baseline)]:
        kept, seen = baseline.get(name), current.get(name)
        least = None if kept is None else round(kept * (1 - tolerance), 3)
        rows[name] = {"kept": kept, "least": least, "seen": seen, "worse": least is not None and (seen is None or seen < least)}
    return rows


def verdict(row: Mapping[str, Any]) -> str:
    if row["seen"] is None:
        return "not measured"
    return "worse" if row["worse"] else "ok" if row["kept"] is not None else "new"


def format_text(comparison: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each ratio, and what follows from them."""
    lines = [f"{'':>12}  {'measured':>8}  {'at least':>8}  {'baseline':>8}"]
    for name, row in comparison.items():
        seen, least, kept = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("seen", "least", "kept"))
        lines.append(f"{verdict(row):>12}  {seen:>8}  {least:>8}  {kept:>8}  {name}")
    by_verdict: dict[str, list[str]] = {}
    for name, row in comparison.items():
        by_verdict.setdefault(verdict(row), []).append(name)
    explanations = {
        "worse": "got worse",
        "not measured": "in the baseline, but not in the figures (a benchmark failed, or `--only` left it out)",
        "new": "not in the baseline (`atelier bench guard --keep` stores it)",
    }
    notes = [f"{text}: {', '.join(by_verdict[kind])}" for kind, text in explanations.items() if kind in by_verdict]
    failed = any(row["worse"] for row in comparison.values())
    return "\n".join([*lines, *notes, "the guard fails" if failed else "no ratio got worse"])
