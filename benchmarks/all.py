"""`atelier bench all`: every benchmark at a size that two cores finish in ten minutes, one after another; the figures as one JSON file.

Each benchmark runs in its own process. `make bench` also writes the tables and charts of `docs/benchmarks.md` from that file.
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
from rich.console import Console

from benchmarks import report_page
from ops.local.tiny_models import make_tiny_models

SIZES: dict[str, tuple[str, ...]] = {
    "bus": ("--sizes", "1000", "64000", "--in-flight", "1", "16", "64", "256", "--rounds", "3", "--seconds", "0.3"),
    "pipeline": ("--orders", "12", "--rounds", "2"),
    "http": ("--questions", "24", "--rounds", "2"),
    "text": ("--each", "1", "--rounds", "2"),
    "growth": ("--backlogs", "1000", "10000", "100000", "--rounds", "2"),
    "ledger": ("--events", "2000"),
    "gateway": ("--seconds", "2.0", "--rounds", "3", "--waiting", "300"),
    "executor": ("--quick",),
    "vlm": ("--rounds", "2", "--tokens", "12"),
    "dead-letters": ("--letters", "2000"),
}
BENCHES_NEEDING_MODELS = ("pipeline", "http", "growth")
PACKAGES = ("aio-pika", "faststream", "celery", "dramatiq", "taskiq", "taskiq-aio-pika", "torch", "diffusers", "transformers", "asyncpg")
BENCH_TIMEOUT_SECONDS = 600.0


def bench(arguments: Namespace) -> int:
    """Returns how many benchmarks failed."""
    models = arguments.out.parent / "models"
    make_tiny_models(models)
    report: dict[str, Any] = {"conditions": conditions(), "benches": {}}
    for name in arguments.only or SIZES:
        command = ["bench", name, *SIZES[name], "--json", *(["--models", str(models)] if name in BENCHES_NEEDING_MODELS else [])]
        report["benches"][name] = run_bench(command)
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
    with Console(stderr=True).status(f"atelier {' '.join(arguments[:2])}"):
        completed = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_TIMEOUT_SECONDS, check=False)
    result: dict[str, Any] = {"command": display_command(arguments), "seconds": round(time.monotonic() - began, 1)}
    try:
        result["figures"] = json.loads(completed.stdout)
    except ValueError:
        result["error"] = completed.stderr[-2000:]
    Console(stderr=True).print(f"{arguments[1]:>14}  {result['seconds']:>6} s  {'done' if 'figures' in result else 'failed'}")
    return result


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
