"""`atelier bench all`: every benchmark at a size that suits two cores, one after another; the figures as one JSON file.

Each benchmark runs in its own process; a line says when it begins, how long it took in the last run, and when it has ended. `make bench`
also writes the tables and charts of `docs/benchmarks.md` from that file.
"""

import json
import os
import platform
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report_page
from benchmarks.harness import show_progress
from benchmarks.processes import run_command
from ops.local.tiny_models import make_tiny_models

SIZES: dict[str, tuple[str, ...]] = {
    "bus": ("--sizes", "1000", "64000", "--in-flight", "1", "16", "64", "256", "--rounds", "3", "--seconds", "0.3"),
    "pipeline": ("--orders", "12", "--rounds", "2"),
    "http": ("--questions", "24", "--rounds", "2"),
    "text": ("--each", "1", "--rounds", "2"),
    "growth": ("--backlogs", "1000", "10000", "100000", "--rounds", "2"),
    "start": ("--rounds", "3"),
    "ledger": ("--events", "2000"),
    "gateway": ("--seconds", "2.0", "--rounds", "3", "--waiting", "300"),
    "executor": ("--quick",),
    "vlm": ("--rounds", "2", "--tokens", "12"),
    "dead-letters": ("--letters", "2000"),
}
BENCHES_NEEDING_MODELS = ("pipeline", "http")
PACKAGES = ("aio-pika", "faststream", "celery", "dramatiq", "taskiq", "taskiq-aio-pika", "torch", "diffusers", "transformers", "asyncpg")
BENCH_TIMEOUT_SECONDS = 600.0


def bench(arguments: Namespace) -> int:
    """Returns how many benchmarks failed."""
    models = arguments.out.parent / "models"
    make_tiny_models(models)
    report: dict[str, Any] = {"conditions": conditions(), "benches": {}}
    names, earlier = arguments.only or list(SIZES), earlier_seconds(arguments.out)
    show_progress(f"{len(names)} benchmarks{expectation([earlier.get(name) for name in names])}")
    for number, name in enumerate(names, 1):
        show_progress(f"{number:>2} of {len(names)}  {name:<13} runs{expectation([earlier.get(name)])}")
        command = ["bench", name, *SIZES[name], "--json", *(["--models", str(models)] if name in BENCHES_NEEDING_MODELS else [])]
        result = report["benches"][name] = run_bench(command)
        show_progress(
            f"{number:>2} of {len(names)}  {name:<13} {'done' if 'figures' in result else 'FAILED'} after {result['seconds']:.0f} s"
        )
    report["conditions"]["load_after"] = os.getloadavg()[0]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.page:
        report_page.update_page(report, arguments.page)
    sys.stdout.write(json.dumps(report) + "\n" if arguments.json else f"Figures written to {arguments.out}\n")
    return sum("figures" not in result for result in report["benches"].values())


def run_bench(arguments: Sequence[str]) -> dict[str, Any]:
    """Its command, seconds and figures; an `error` instead of figures when it fails, so that the others go on."""
    command, began = [sys.executable, "-m", "ops.cli", *arguments], time.monotonic()
    result: dict[str, Any] = {"command": display_command(arguments)}
    try:
        completed = run_command(command, timeout=BENCH_TIMEOUT_SECONDS)
        result["figures"] = json.loads(completed.stdout)
    except subprocess.TimeoutExpired:
        result["error"] = f"it took more than {BENCH_TIMEOUT_SECONDS:.0f} s"
    except ValueError:
        result["error"] = completed.stderr[-2000:]
    result["seconds"] = round(time.monotonic() - began, 1)
    return result


def earlier_seconds(figures_file: Path) -> dict[str, float]:
    """How long each benchmark took in the run that wrote the file; empty without one that can be read."""
    try:
        return {name: float(result["seconds"]) for name, result in json.loads(figures_file.read_text())["benches"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def expectation(seconds: Sequence[float | None]) -> str:
    """What the last run took; nothing when one of them was not in it."""
    known = [value for value in seconds if value is not None]
    return f", {sum(known):.0f} s the last time" if len(known) == len(seconds) else ""


def display_command(arguments: Sequence[str]) -> str:
    """As a user types it: without `--models`, a path of this machine."""
    shown = arguments[: arguments.index("--models")] if "--models" in arguments else arguments
    return f"atelier {' '.join(shown)}"


def conditions() -> dict[str, Any]:
    memory = round(psutil.virtual_memory().total / 1e9)
    return {
        "day": datetime.now(UTC).date().isoformat(),
        "processor": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": memory,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
