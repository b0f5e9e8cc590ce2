"""`atelier bench bus`: messages per second, one way and with a reply, of this bus and its peers on the same private broker.

Each side has two processes, a sender and a worker. The sides take turns within each round, so that a busy moment of the machine
affects all of them; a figure is the median of the rounds.
"""

import asyncio
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.progress import Progress

from benchmarks.bus_goals import summarize_goals
from benchmarks.harness import alternate, print_figures, private_services
from benchmarks.peers import PEERS
from benchmarks.peers.peer_processes import PeerProcesses, Throughput, open_peer
from benchmarks.peers.workload import PeerConfig
from bus.observability.logs import configure_logging
from ops.local.stack import ServiceUrls

WARMUP_COUNT, MIN_COUNT, MAX_COUNT = 48, 24, 20_000
BASELINE_OF = {"bus": "aio_pika", "bus_kept": "aio_pika_kept", "middleware": "bus", "middleware_kept": "bus_kept"}


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    print_figures(asyncio.run(measure(arguments)), as_json=arguments.json, format_text=format_text)
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    speeds: dict[str, dict[str, list[Throughput]]] = {}
    with TemporaryDirectory(prefix="atelier-bench-") as folder, Progress(disable=arguments.json or not sys.stderr.isatty()) as bar:
        task = bar.add_task("sides", total=len(arguments.sizes) * len(arguments.in_flight))
        async with private_services(Path(folder)) as services:
            for in_flight in arguments.in_flight:
                async with open_peers(arguments.sides, in_flight, services) as processes:
                    for size in arguments.sizes:
                        for mode, by_side in (await measure_cell(size, in_flight, arguments, processes)).items():
                            speeds[f"{mode} {size} {in_flight}"] = by_side
                        bar.advance(task)
    return summarize(speeds)


@asynccontextmanager
async def open_peers(peers: Sequence[str], in_flight: int, services: ServiceUrls) -> AsyncIterator[dict[str, PeerProcesses]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(open_peer(name, peer_config(name, in_flight, services))) for name in peers}


async def measure_cell(
    size: int, in_flight: int, arguments: Namespace, processes: Mapping[str, PeerProcesses]
) -> dict[str, dict[str, list[Throughput]]]:
    """The speeds of every round, by mode and side."""
    speeds: dict[str, dict[str, list[Throughput]]] = {"send": {}, "ask": {}}
    for side in alternate(arguments.sides, arguments.rounds):
        for mode in ("send", "ask") if PEERS[side].replies else ("send",):
            warmup = await processes[side].measure(mode, WARMUP_COUNT, size, in_flight)
            count = round(min(MAX_COUNT, max(MIN_COUNT, warmup.messages_per_second * arguments.seconds)))
            speeds[mode].setdefault(side, []).append(await processes[side].measure(mode, count, size, in_flight))
    return speeds


def peer_config(name: str, in_flight: int, services: ServiceUrls) -> PeerConfig:
    """Each side has its own queue; those that store outcomes have the database, too."""
    database = services.database_url if PEERS[name].stores_outcomes else None
    return PeerConfig(f"bench-{name.replace('_', '-')}", services.amqp_url, services.store_url, database, in_flight)


def summarize(speeds: Mapping[str, Mapping[str, Sequence[Throughput]]]) -> dict[str, Any]:
    """By cell: medians with minimum and maximum, and each side's share of its baseline in the same round.

    The baseline is bare aio-pika where `BASELINE_OF` names no other.

    `cpu_share` is the same for processor time: the baseline's divided by the side's own. It is steadier on a busy machine.
    """
    shares = ratios_by_cell(speeds, lambda ours, baseline: ours.messages_per_second / baseline.messages_per_second)
    cpu_shares = ratios_by_cell(speeds, lambda ours, baseline: baseline.cpu_microseconds / ours.cpu_microseconds)
    return {
        "promises": {name: vars(peer) for name, peer in PEERS.items()},
        "cells": {cell: {side: summarize_speeds(values) for side, values in by_side.items()} for cell, by_side in speeds.items()},
        "share": shares,
        "cpu_share": cpu_shares,
        "median_share": {name: median_by_mode(name, shares) for name in BASELINE_OF},
        "median_cpu_share": {name: median_by_mode(name, cpu_shares) for name in BASELINE_OF},
        **summarize_goals(speeds),
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
    """Each side against its baseline: the median of the rounds' ratios."""
    return {
        cell: {
            side: round(median(map(ratio, values, by_side[baseline])), 3)
            for side, values in by_side.items()
            if (baseline := BASELINE_OF.get(side, "aio_pika")) in by_side and side != baseline
        }
        for cell, by_side in speeds.items()
    }


def median_by_mode(name: str, shares: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    modes = {
        mode: [by_side[name] for cell, by_side in shares.items() if cell.startswith(mode) and name in by_side] for mode in ("send", "ask")
    }
    return {mode: round(median(values), 3) for mode, values in modes.items() if values}


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'mode, bytes, in flight':>24} {'side':>14} {'messages/s':>11} {'cpu µs':>8} {'of baseline':>12} {'by cpu':>8}"]
    for cell, sides in figures["cells"].items():
        for side, values in sides.items():
            share, cpu_share = figures["share"][cell].get(side, ""), figures["cpu_share"][cell].get(side, "")
            lines.append(f"{cell:>24} {side:>14} {values['per_second']:>11} {values['cpu_us']:>8} {share:>12} {cpu_share:>8}")
    lines.append(f"median share of the baseline: {figures['median_share']}")
    lines.append(f"by processor time: {figures['median_cpu_share']}")
    lines += [f"{name}: {figures[name]}" for name in summarize_goals({})]
    return "\n".join(lines)
