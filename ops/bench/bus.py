"""`atelier bench bus`: messages a second, one way and with a reply, of this bus and its peers on the same private broker.

Each side has two processes, what sends and what works. The sides take turns within each round, so that a busy moment of the
machine meets all of them; a figure is the median of the rounds.
"""

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.progress import Progress

from bus.logs import open_logs
from ops.bench.peers import PEERS
from ops.bench.peers.ends import Ends, Speed, opened
from ops.bench.peers.run import Place
from ops.local.stack import Addresses, local_stack
from ops.settings import LocalSettings

WARM_COUNT, LEAST_COUNT, MOST_COUNT = 48, 24, 20_000
SAME_PROMISES = {"bus": "aio_pika", "bus_kept": "aio_pika_kept"}


def bench(arguments: Namespace) -> int:
    open_logs("ERROR")
    told = asyncio.run(measured(arguments))
    sys.stdout.write((json.dumps(told) if arguments.json else in_words(told)) + "\n")
    return 0


async def measured(arguments: Namespace) -> dict[str, Any]:
    speeds: dict[str, dict[str, list[Speed]]] = {}
    with TemporaryDirectory(prefix="atelier-bench-") as folder, Progress(disable=arguments.json or not sys.stderr.isatty()) as bar:
        task = bar.add_task("sides", total=len(arguments.sizes) * len(arguments.in_flight))
        parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=Path(folder))
        async with local_stack(parts) as stack:
            for in_flight in arguments.in_flight:
                async with all_open(arguments.sides, in_flight, stack) as ends:
                    for size in arguments.sizes:
                        for name, by_side in (await one_cell(size, in_flight, arguments, ends)).items():
                            speeds[f"{name} {size} {in_flight}"] = by_side
                        bar.advance(task)
    return figures(speeds)


@asynccontextmanager
async def all_open(sides: Sequence[str], in_flight: int, addresses: Addresses) -> AsyncIterator[dict[str, Ends]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(opened(name, place(name, in_flight, addresses))) for name in sides}


async def one_cell(size: int, in_flight: int, arguments: Namespace, ends: Mapping[str, Ends]) -> dict[str, dict[str, list[Speed]]]:
    """Speeds by mode and side."""
    taken: dict[str, dict[str, list[Speed]]] = {"send": {}, "ask": {}}
    for number in range(arguments.rounds):
        for name in arguments.sides[:: 1 if number % 2 == 0 else -1]:
            for mode in ("send", "ask") if PEERS[name].replies else ("send",):
                warm = await ends[name].speed(mode, WARM_COUNT, size, in_flight)
                count = round(min(MOST_COUNT, max(LEAST_COUNT, warm.rate * arguments.seconds)))
                taken[mode].setdefault(name, []).append(await ends[name].speed(mode, count, size, in_flight))
    return taken


def place(name: str, in_flight: int, addresses: Addresses) -> Place:
    """Each side has a queue of its own; those that keep outcomes have the database, too."""
    database = addresses.database_url if PEERS[name].keeps else None
    return Place(f"bench-{name.replace('_', '-')}", addresses.amqp_url, addresses.store_url, database, in_flight)


def figures(speeds: Mapping[str, Mapping[str, Sequence[Speed]]]) -> dict[str, Any]:
    """By cell: medians with the least and the most, and what each side reaches of bare aio-pika in the same round.

    `cpu_share` is the same for processor time: bare aio-pika's by the side's own. It is the steadier one on a busy machine.
    """
    shares = by_cell(speeds, lambda ours, theirs: ours.rate / theirs.rate)
    cpu_shares = by_cell(speeds, lambda ours, theirs: theirs.cpu_us / ours.cpu_us)
    return {
        "promises": {name: vars(peer) for name, peer in PEERS.items()},
        "cells": {cell: {name: in_short(seen) for name, seen in by.items()} for cell, by in speeds.items()},
        "share": shares,
        "cpu_share": cpu_shares,
        "median_share": {name: middle(name, shares) for name in SAME_PROMISES},
        "median_cpu_share": {name: middle(name, cpu_shares) for name in SAME_PROMISES},
    }


def in_short(seen: Sequence[Speed]) -> dict[str, float]:
    rates = [speed.rate for speed in seen]
    return {
        "per_second": round(median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
        "cpu_us": round(median(speed.cpu_us for speed in seen)),
    }


def by_cell(speeds: Mapping[str, Mapping[str, Sequence[Speed]]], ratio: Callable[[Speed, Speed], float]) -> dict[str, dict[str, float]]:
    """Each side against bare aio-pika with the same promises: the median of the rounds' ratios."""
    return {
        cell: {
            name: round(median(map(ratio, seen, by[bare])), 3)
            for name, seen in by.items()
            if (bare := SAME_PROMISES.get(name, "aio_pika")) in by and name != bare
        }
        for cell, by in speeds.items()
    }


def middle(name: str, shares: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    modes = {mode: [by[name] for cell, by in shares.items() if cell.startswith(mode) and name in by] for mode in ("send", "ask")}
    return {mode: round(median(seen), 3) for mode, seen in modes.items() if seen}


def in_words(told: Mapping[str, Any]) -> str:
    lines = [f"{'mode, bytes, in flight':>24} {'side':>14} {'messages/s':>11} {'cpu µs':>8} {'of aio-pika':>12} {'by cpu':>8}"]
    for cell, sides in told["cells"].items():
        for name, seen in sides.items():
            share, cpu_share = told["share"][cell].get(name, ""), told["cpu_share"][cell].get(name, "")
            lines.append(f"{cell:>24} {name:>14} {seen['per_second']:>11} {seen['cpu_us']:>8} {share:>12} {cpu_share:>8}")
    lines.append(
        f"median share of bare aio-pika with the same promises: {told['median_share']}, by processor time {told['median_cpu_share']}"
    )
    return "\n".join(lines)
