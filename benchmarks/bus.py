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

from benchmarks.peers import PEERS
from benchmarks.peers.peer_processes import PeerProcesses, Throughput, open_peer
from benchmarks.peers.workload import PeerConfig
from bus.observability.logs import configure_logging
from ops.local.stack import ServiceUrls, local_stack
from ops.settings import LocalSettings

WARMUP_COUNT, MIN_COUNT, MAX_COUNT = 48, 24, 20_000
BASELINE_OF = {"bus": "aio_pika", "bus_kept": "aio_pika_kept"}


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    told = asyncio.run(measure(arguments))
    sys.stdout.write((json.dumps(told) if arguments.json else format_text(told)) + "\n")
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    speeds: dict[str, dict[str, list[Throughput]]] = {}
    with TemporaryDirectory(prefix="atelier-bench-") as folder, Progress(disable=arguments.json or not sys.stderr.isatty()) as bar:
        task = bar.add_task("sides", total=len(arguments.sizes) * len(arguments.in_flight))
        parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=Path(folder))
        async with local_stack(parts) as stack:
            for in_flight in arguments.in_flight:
                async with open_peers(arguments.sides, in_flight, stack) as ends:
                    for size in arguments.sizes:
                        for name, by_side in (await measure_cell(size, in_flight, arguments, ends)).items():
                            speeds[f"{name} {size} {in_flight}"] = by_side
                        bar.advance(task)
    return summarize(speeds)


@asynccontextmanager
async def open_peers(peers: Sequence[str], in_flight: int, addresses: ServiceUrls) -> AsyncIterator[dict[str, PeerProcesses]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(open_peer(name, peer_config(name, in_flight, addresses))) for name in peers}


async def measure_cell(
    size: int, in_flight: int, arguments: Namespace, processes: Mapping[str, PeerProcesses]
) -> dict[str, dict[str, list[Throughput]]]:
    """Speeds by mode and side."""
    taken: dict[str, dict[str, list[Throughput]]] = {"send": {}, "ask": {}}
    for number in range(arguments.rounds):
        for name in arguments.sides[:: 1 if number % 2 == 0 else -1]:
            for mode in ("send", "ask") if PEERS[name].replies else ("send",):
                warm = await processes[name].measure(mode, WARMUP_COUNT, size, in_flight)
                count = round(min(MAX_COUNT, max(MIN_COUNT, warm.messages_per_second * arguments.seconds)))
                taken[mode].setdefault(name, []).append(await processes[name].measure(mode, count, size, in_flight))
    return taken


def peer_config(name: str, in_flight: int, addresses: ServiceUrls) -> PeerConfig:
    """Each side has a queue of its own; those that keep outcomes have the database, too."""
    database = addresses.database_url if PEERS[name].keeps else None
    return PeerConfig(f"bench-{name.replace('_', '-')}", addresses.amqp_url, addresses.store_url, database, in_flight)


def summarize(speeds: Mapping[str, Mapping[str, Sequence[Throughput]]]) -> dict[str, Any]:
    """By cell: medians with the least and the most, and what each side reaches of bare aio-pika in the same round.

    `cpu_share` is the same for processor time: bare aio-pika's by the side's own. It is the steadier one on a busy machine.
    """
    shares = ratios_by_cell(speeds, lambda ours, theirs: ours.messages_per_second / theirs.messages_per_second)
    cpu_shares = ratios_by_cell(speeds, lambda ours, theirs: theirs.cpu_microseconds / ours.cpu_microseconds)
    return {
        "promises": {name: vars(peer) for name, peer in PEERS.items()},
        "cells": {cell: {name: summarize_speeds(seen) for name, seen in by.items()} for cell, by in speeds.items()},
        "share": shares,
        "cpu_share": cpu_shares,
        "median_share": {name: median_by_mode(name, shares) for name in BASELINE_OF},
        "median_cpu_share": {name: median_by_mode(name, cpu_shares) for name in BASELINE_OF},
    }


def summarize_speeds(speeds: Sequence[Throughput]) -> dict[str, float]:
    rates = [speed.messages_per_second for speed in speeds]
    return {
        "per_second": round(median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
        "cpu_us": round(median(speed.cpu_microseconds for speed in speeds)),
    }


def ratios_by_cell(
    speeds: Mapping[str, Mapping[str, Sequence[Throughput]]], ratio: Callable[[Throughput, Throughput], float]
) -> dict[str, dict[str, float]]:
    """Each side against bare aio-pika with the same promises: the median of the rounds' ratios."""
    return {
        cell: {
            name: round(median(map(ratio, seen, by[bare])), 3)
            for name, seen in by.items()
            if (bare := BASELINE_OF.get(name, "aio_pika")) in by and name != bare
        }
        for cell, by in speeds.items()
    }


def median_by_mode(name: str, shares: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    modes = {mode: [by[name] for cell, by in shares.items() if cell.startswith(mode) and name in by] for mode in ("send", "ask")}
    return {mode: round(median(seen), 3) for mode, seen in modes.items() if seen}


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'mode, bytes, in flight':>24} {'side':>14} {'messages/s':>11} {'cpu µs':>8} {'of aio-pika':>12} {'by cpu':>8}"]
    for cell, sides in figures["cells"].items():
        for name, seen in sides.items():
            share, cpu_share = figures["share"][cell].get(name, ""), figures["cpu_share"][cell].get(name, "")
            lines.append(f"{cell:>24} {name:>14} {seen['per_second']:>11} {seen['cpu_us']:>8} {share:>12} {cpu_share:>8}")
    lines.append(
        f"median share of bare aio-pika with the same promises: {figures['median_share']}, by processor time {figures['median_cpu_share']}"
    )
    return "\n".join(lines)
