"""`atelier bench start`: time until a process is ready, and its memory then, of the gateway and of CPU actors.

The actors are those that need no other server than the broker, the database and the store. Each is started alone, against private services.
The start before the counted ones writes the byte code, as an installation does.
"""

import asyncio
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress

from benchmarks.harness import alternate, print_figures, private_services
from benchmarks.processes import start_process
from bus.observability.logs import configure_logging
from ops.settings import inherited_environment

SETTLE_SECONDS = 0.5
ACTOR_GOALS = {"ready_seconds": 0.6, "memory_mb": 60.0}
GATEWAY_GOALS = {"ready_seconds": 0.9, "memory_mb": 65.0}
"""On an idle machine; processor seconds, which other processes affect less, have no goal of their own."""
Start = Mapping[str, float]


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    figures = asyncio.run(measure(arguments.steps, arguments.rounds))
    print_figures(figures, as_json=arguments.json, format_text=format_text)
    return 0


async def measure(steps: Sequence[str], rounds: int) -> dict[str, Any]:
    starts: dict[str, list[Start]] = {step: [] for step in steps}
    with (
        TemporaryDirectory(prefix="atelier-bench-") as folder,
        Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar,
    ):
        task = bar.add_task("services", total=len(starts) * (rounds + 1))
        async with private_services(Path(folder)) as services:
            environment = inherited_environment() | services.environment
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without byte code, each start would compile all modules
            for number, step in enumerate([*starts, *alternate(list(starts), rounds)]):
                bar.update(task, description=step)
                start = await measure_start(step, environment)
                if number >= len(starts):
                    starts[step].append(start)
                bar.advance(task)
    return summarize(starts)


async def measure_start(step: str, environment: Mapping[str, str]) -> Start:
    arguments = ["gateway", "--port", "0"] if step == "gateway" else ["run", step]
    began = time.perf_counter()
    async with start_process(["ops.cli", *arguments], environment, f"{'gateway' if step == 'gateway' else 'actors'}.ready") as started:
        seconds, process = time.perf_counter() - began, psutil.Process(started.process.pid)
        times = process.cpu_times()
        await asyncio.sleep(SETTLE_SECONDS)
        memory = process.memory_info().rss
    return {"ready_seconds": seconds, "processor_seconds": times.user + times.system, "memory_mb": memory / 1e6}


def summarize(starts: Mapping[str, Sequence[Start]]) -> dict[str, Any]:
    """Medians, the goals, and for each process the figures that are above their goal."""
    medians = {step: {name: round(median(start[name] for start in values), 2) for name in values[0]} for step, values in starts.items()}
    goals = {step: GATEWAY_GOALS if step == "gateway" else ACTOR_GOALS for step in starts}
    over = {step: [name for name, goal in goals[step].items() if medians[step][name] > goal] for step in starts}
    return {"processes": medians, "goals": goals, "over_goal": {step: names for step, names in over.items() if names}}


def format_text(figures: Mapping[str, Any]) -> str:
    lines = ["s to ready  goal    s of processor    MB  goal"]
    for step, start in figures["processes"].items():
        goals = figures["goals"][step]
        mark = f"  above its goal: {', '.join(figures['over_goal'][step])}" if step in figures["over_goal"] else ""
        lines.append(
            f"{start['ready_seconds']:>10}  {goals['ready_seconds']:>4}  {start['processor_seconds']:>16}  {start['memory_mb']:>4.1f}  "
            f"{goals['memory_mb']:>4.0f}  {step}{mark}"
        )
    return "\n".join(lines)
