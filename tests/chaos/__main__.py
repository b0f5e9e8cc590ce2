"""`python -m tests.chaos`: every fault alone, then a random mix; prints a table and writes `.local/chaos.json`."""

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from tests.chaos.environment import ENVIRONMENT_KINDS, ChaosEnvironment, open_environment
from tests.chaos.faults import FAULTS_BY_NAME, KIND_OF
from tests.chaos.mutations import CHAOS_MUTATIONS
from tests.chaos.rounds import RoundResult, play_round

TABLE_COLUMNS = (
    "name",
    "orders",
    "confirmed",
    "effects",
    "lost",
    "duplicated",
    "dead_lettered",
    "expired",
    "repeated_calls",
    "unrecorded",
    "redelivered",
    "met",
    "hostile",
    "hostile_lost",
    "recover_seconds",
    "seconds",
)
SUMMED_FIELDS = ("orders", "confirmed", "effects", "lost", "duplicated", "dead_lettered", "expired", "unrecorded")

LOAD_FACTORS = {"folder": 1.0, "bucket": 0.4, "engine": 0.3}
"""The share of the orders, and of their rate, by kind of environment."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = argument_parser().parse_args(arguments)
    stop_services_on_sigterm()
    rng = random.Random(arguments.seed)
    faults = arguments.fault or [*FAULTS_BY_NAME, *rng.choices(list(FAULTS_BY_NAME), k=arguments.mix)]
    results = asyncio.run(run_faults(faults, arguments.orders, arguments.rate, arguments.seed, arguments.mutation))
    report = build_report(results, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))
    Console().print(results_table(results, arguments.seed))
    return 0 if all(result.clean for result in results) else 1


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("chaos", description=__doc__)
    parser.add_argument("--fault", action="append", choices=list(FAULTS_BY_NAME), help="only this one; may be repeated")
    parser.add_argument("--orders", type=int, default=600, help="orders of a round")
    parser.add_argument("--rate", type=float, default=25, help="orders per second")
    parser.add_argument("--mix", type=int, default=3, help="number of random faults that follow")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--mutation", default="", choices=list(CHAOS_MUTATIONS), help="disable a safety mechanism")
    parser.add_argument("--out", type=Path, default=Path(".local/chaos.json"))
    return parser


def stop_services_on_sigterm() -> None:
    """As on Ctrl-C: without it the services and workers would outlive this process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


async def run_faults(faults: Sequence[str], orders: int, rate: float, seed: int, mutation: str = "") -> list[RoundResult]:
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # the oracle meets the killed broker, too
    rng = random.Random(seed)
    results = []
    for kind in ENVIRONMENT_KINDS:
        if selected := [fault for fault in faults if KIND_OF[fault] == kind]:
            factor = LOAD_FACTORS[kind]
            with TemporaryDirectory(prefix="atelier-chaos-") as folder:
                async with open_environment(Path(folder), mutation, kind) as environment:
                    results += [
                        await play_and_report(environment, fault, max(1, round(orders * factor)), rate * factor, rng) for fault in selected
                    ]
                    for number, lines in environment.log_excerpts().items():
                        sys.stderr.write("\n".join([f"order {number}:", *lines, ""]))
    return results


async def play_and_report(environment: ChaosEnvironment, fault: str, orders: int, rate: float, rng: random.Random) -> RoundResult:
    result = await play_round(environment, fault, orders=orders, per_second=rate, rng=rng)
    sys.stderr.write(f"{fault}: {verdict(result)} {result.as_dict}\n")
    return result


def verdict(result: RoundResult) -> str:
    return "clean" if result.clean else "FAULT DID NOT HIT" if result.missed else "NOT CLEAN"


def build_report(results: Sequence[RoundResult], seed: int) -> dict[str, object]:
    sums = {name: sum(getattr(result, name) for result in results) for name in SUMMED_FIELDS}
    return sums | {"seed": seed, "faults": [result.as_dict for result in results]}


def results_table(results: Sequence[RoundResult], seed: int) -> Table:
    table = Table(*(name.replace("_", " ") for name in TABLE_COLUMNS), title=f"seed {seed}", box=None)
    for result in results:
        table.add_row(*(str(getattr(result, name)) for name in TABLE_COLUMNS), style="" if result.clean else "red")
    return table


if __name__ == "__main__":
    sys.exit(main())
