"""`atelier bench guard`: are the ratios still what they were? Reads what `atelier bench all` wrote, and `ratios.json` beside this file.

Ratios, not times: both sides of each were measured in one run, so they can be compared across machines.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

BASELINE_FILE = Path(__file__).with_name("ratios.json")
RATIOS = {
    "bus, one way": "bus.median_cpu_share.bus.send",
    "bus, request and reply": "bus.median_cpu_share.bus.ask",
    "bus with inbox, one way": "bus.median_cpu_share.bus_kept.send",
    "bus with inbox, request and reply": "bus.median_cpu_share.bus_kept.ask",
    "pipeline over the inline loop": "pipeline.over_inline",
    "HTTP over the inline server, 32 clients": "http.over_inline.32",
    "text over vLLM asked directly, 16 clients": "text.over_direct.16",
    "gateway's bus client, 64 callers": "gateway.bus_share_of_aio_pika.64",
    "gateway's HTTP, 64 callers": "gateway.http_share_of_aio_pika.64",
    "a backlog of 100,000": "growth.backlog_share.100000",
    "step batching over one by one": "executor.step_batching_speedup",
}
"""Name and place in the figures. More is better in each."""


def bench(arguments: Namespace) -> int:
    """Returns 1 when a ratio got worse by more than the tolerance."""
    seen = extract_ratios(json.loads(arguments.figures.read_text()))
    if arguments.keep:
        BASELINE_FILE.write_text(json.dumps(seen, indent=2) + "\n")
        sys.stdout.write(f"{len(seen)} ratios kept\n")
        return 0
    told = compare(json.loads(BASELINE_FILE.read_text()), seen, arguments.tolerance)
    sys.stdout.write((json.dumps(told) if arguments.json else format_text(told)) + "\n")
    return int(any(row["worse"] for row in told.values()))


def extract_ratios(report: Mapping[str, Any]) -> dict[str, float]:
    figures = {name: said["figures"] for name, said in report["benches"].items() if "figures" in said}
    found = {name: value_at(figures, path) for name, path in RATIOS.items()}
    return {name: value for name, value in found.items() if value is not None}


def value_at(figures: Mapping[str, Any], path: str) -> float | None:
    bench, *rest = path.split(".")
    try:
        return float(reduce(lambda at, name: at[name], rest, figures[bench]))
    except KeyError:
        return None


def compare(baseline: Mapping[str, float], current: Mapping[str, float], tolerance: float) -> dict[str, dict[str, Any]]:
    """A ratio that was kept and is not seen counts as worse: nobody knows that it is not."""
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
