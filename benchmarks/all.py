"""`atelier bench all`: every bench at a size that two cores finish in ten minutes, one after the other; figures as one JSON file.

Each bench is a process of its own. `make bench` also writes the tables and pictures of `docs/benchmarks.md` from that file.
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
    "bus": ("--sizes", "1000", "64000", "--in-flight", "1", "16", "256", "--rounds", "3", "--seconds", "0.3"),
    "pipeline": ("--orders", "12", "--rounds", "2"),
    "http": ("--questions", "24", "--rounds", "2"),
    "text": ("--each", "1", "--rounds", "2"),
    "growth": ("--backlogs", "1000", "10000", "100000", "--rounds", "2"),
    "ledger": ("--events", "2000"),
    "gateway": ("--seconds", "2.0", "--rounds", "3", "--waiting", "300"),
    "executor": ("--quick",),
    "vlm": ("--rounds", "2", "--tokens", "24"),
    "dead-letters": ("--letters", "2000"),
}
BENCHES_NEEDING_MODELS = ("pipeline", "http", "growth")
PACKAGES = ("aio-pika", "faststream", "celery", "dramatiq", "taskiq", "taskiq-aio-pika", "torch", "diffusers", "transformers", "asyncpg")
BENCH_TIMEOUT_SECONDS = 600.0


def bench(arguments: Namespace) -> int:
    """Returns how many benches failed."""
    models = arguments.out.parent / "models"
    make_tiny_models(models)
    told: dict[str, Any] = {"conditions": conditions(), "benches": {}}
    for name in arguments.only or SIZES:
        words = ["bench", name, *SIZES[name], "--json", *(["--models", str(models)] if name in BENCHES_NEEDING_MODELS else [])]
        told["benches"][name] = run_bench(words)
    told["conditions"]["load_after"] = os.getloadavg()[0]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    if arguments.page:
        report_page.update_page(told, arguments.page)
    sys.stdout.write(json.dumps(told) + "\n" if arguments.json else f"The figures lie in {arguments.out}\n")
    return sum("figures" not in said for said in told["benches"].values())


def run_bench(arguments: Sequence[str]) -> dict[str, Any]:
    """A bench that fails takes no other one with it."""
    command, began = [sys.executable, "-m", "ops.cli", *arguments], time.monotonic()
    with Console(stderr=True).status(f"atelier {' '.join(arguments[:2])}"):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_TIMEOUT_SECONDS, check=False)
    said: dict[str, Any] = {"command": display_command(arguments), "seconds": round(time.monotonic() - began, 1)}
    try:
        said["figures"] = json.loads(ended.stdout)
    except ValueError:
        said["error"] = ended.stderr[-2000:]
    Console(stderr=True).print(f"{arguments[1]:>14}  {said['seconds']:>6} s  {'done' if 'figures' in said else 'failed'}")
    return said


def display_command(arguments: Sequence[str]) -> str:
    """As a person types it: without the place of the models, which is this machine's."""
    kept = arguments[: arguments.index("--models")] if "--models" in arguments else arguments
    return f"atelier {' '.join(kept)}"


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
