"""`python -m tests.chaos`: every fault alone, then a random mix; one table, and `.local/chaos.json`."""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from tests.chaos.environment import ENVIRONMENT_KINDS, ChaosEnvironment, open_environment
from tests.chaos.faults import FAULTS_BY_NAME, KIND_OF
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
    "recover_seconds",
    "seconds",
)
SUMMED_FIELDS = ("orders", "confirmed", "effects", "lost", "duplicated", "dead_lettered", "expired")

LOAD_FACTORS = {"folder": 1.0, "bucket": 0.4, "engine": 0.3}
"""The share of the orders, and of their rate, that a kind of site is given."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = argument_parser().parse_args(arguments)
    chance = random.Random(arguments.seed)
    faults = arguments.fault or [*FAULTS_BY_NAME, *chance.choices(list(FAULTS_BY_NAME), k=arguments.mix)]
    rounds = asyncio.run(run_faults(faults, arguments.orders, arguments.rate, arguments.seed, arguments.mutation))
    report = build_report(rounds, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))
    Console().print(results_table(rounds, arguments.seed))
    return 0 if all(played.clean for played in rounds) else 1


def argument_parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("chaos", description=__doc__)
    top.add_argument("--fault", action="append", choices=list(FAULTS_BY_NAME), help="only this one; may be said several times")
    top.add_argument("--orders", type=int, default=600, help="orders a round")
    top.add_argument("--rate", type=float, default=25, help="orders a second")
    top.add_argument("--mix", type=int, default=3, help="how many faults of the random mix follow")
    top.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    top.add_argument(
        "--mutation", default="", choices=["", "no-persistence", "ack-first", "no-inbox", "no-confirms"], help="take a safety away"
    )
    top.add_argument("--out", type=Path, default=Path(".local/chaos.json"))
    return top


async def run_faults(faults: Sequence[str], orders: int, rate: float, seed: int, mutation: str = "") -> list[RoundResult]:
    chance = random.Random(seed)
    played = []
    for kind in ENVIRONMENT_KINDS:
        if here := [fault for fault in faults if KIND_OF[fault] == kind]:
            pace = LOAD_FACTORS[kind]
            with TemporaryDirectory(prefix="atelier-chaos-") as folder:
                async with open_environment(Path(folder), mutation, kind) as site:
                    played += [await play_and_report(site, fault, max(1, round(orders * pace)), rate * pace, chance) for fault in here]
                    for number, lines in site.log_excerpts().items():
                        sys.stderr.write("\n".join([f"order {number}:", *lines, ""]))
    return played


async def play_and_report(environment: ChaosEnvironment, fault: str, orders: int, rate: float, rng: random.Random) -> RoundResult:
    played = await play_round(environment, fault, orders=orders, per_second=rate, rng=rng)
    sys.stderr.write(f"{fault}: {'clean' if played.clean else 'NOT CLEAN'} {played.as_dict}\n")
    return played


def build_report(results: Sequence[RoundResult], seed: int) -> dict[str, object]:
    sums = {name: sum(getattr(played, name) for played in results) for name in SUMMED_FIELDS}
    return sums | {"seed": seed, "faults": [played.as_dict for played in results]}


def results_table(results: Sequence[RoundResult], seed: int) -> Table:
    table = Table(*(name.replace("_", " ") for name in TABLE_COLUMNS), title=f"seed {seed}", box=None)
    for played in results:
        table.add_row(*(str(getattr(played, name)) for name in TABLE_COLUMNS), style="" if played.clean else "red")
    return table


if __name__ == "__main__":
    sys.exit(main())
