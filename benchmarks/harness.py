"""What the benchmarks share: private local services, rounds in alternating order, statistics of the rounds, and the printed result."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from ops.errors import SetupError
from ops.local.stack import ServiceUrls, local_stack
from ops.local.tiny_models import tiny_model_paths
from ops.settings import LocalSettings

Side = TypeVar("Side")


@asynccontextmanager
async def private_services(folder: Path) -> AsyncIterator[ServiceUrls]:
    """A RabbitMQ node with one user for all, a PostgreSQL server and a claim store in `folder`, whatever the environment names."""
    settings = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
    async with local_stack(settings) as urls:
        yield replace(urls, amqp_urls={})


async def make_tiny_models_in_subprocess(folder: Path) -> dict[str, Path]:
    """Make those that are missing, in a subprocess, so that the benchmark itself does not import torch. Raises SetupError."""
    paths = tiny_model_paths(folder)
    if not all(path.exists() for path in paths.values()):
        command = [sys.executable, "-m", "ops.cli", "models", "tiny", "--folder", str(folder)]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
        output, _ = await process.communicate()
        if process.returncode:
            raise SetupError(f"The tiny models could not be made:\n{output.decode(errors='replace')[-2000:]}")
    return paths


def alternate(sides: Sequence[Side], rounds: int) -> Iterator[Side]:
    """Every side once a round, in the opposite order each time, so that a busy moment of the machine affects all of them."""
    for number in range(rounds):
        yield from sides if number % 2 == 0 else reversed(sides)


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios round by round: a slow round of both sides does not count."""
    return round(median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


def percentiles_ms(seconds: Sequence[float], digits: int | None = None) -> dict[str, float]:
    """`p50_ms` and `p99_ms` of times in seconds."""
    cuts = quantiles(seconds, n=100) if len(seconds) > 1 else [*seconds] * 99
    return {"p50_ms": round(cuts[49] * 1000, digits), "p99_ms": round(cuts[98] * 1000, digits)}


def show_progress(line: str) -> None:
    """On standard error, so that standard output has the figures alone."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def print_figures(figures: Mapping[str, Any], *, as_json: bool, format_text: Callable[[Mapping[str, Any]], str] | None = None) -> None:
    """One JSON document, or text; without `format_text` one line for each figure."""
    text = json.dumps(figures) if as_json else (format_text or format_lines)(figures)
    sys.stdout.write(text + "\n")


def format_lines(figures: Mapping[str, Any]) -> str:
    return "\n".join(f"{name:>28}  {value}" for name, value in figures.items())
