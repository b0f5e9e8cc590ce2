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
    """A ratio of the baseline that was not measured counts as worse."""
    return {
        name: {"kept": before, "seen": current.get(name), "worse": name not in current or current[name] < before * (1 - tolerance)}
        for name, before in baseline.items()
    }


def format_text(comparison: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        f"{'worse' if row['worse'] else 'ok':>6}  {row['seen'] or '-':>8}  was {row['kept']:<8}  {name}" for name, row in comparison.items()
    ]
    worse = [name for name, row in comparison.items() if row["worse"]]
    return "\n".join([*lines, f"got worse: {', '.join(worse)}" if worse else "no ratio got worse"])
