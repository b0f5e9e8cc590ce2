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

from tests.chaos.faults import FAULTS, KIND_OF
from tests.chaos.rounds import Round, play
from tests.chaos.site import KINDS, Site, open_site

COLUMNS = (
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
SUMMED = ("orders", "confirmed", "effects", "lost", "duplicated", "dead_lettered", "expired")

PACES = {"folder": 1.0, "bucket": 0.4, "engine": 0.3}
"""The share of the orders, and of their rate, that a kind of site is given."""


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    chance = random.Random(arguments.seed)
    faults = arguments.fault or [*FAULTS, *chance.choices(list(FAULTS), k=arguments.mix)]
    rounds = asyncio.run(run(faults, arguments.orders, arguments.rate, arguments.seed, arguments.mutation))
    report = report_of(rounds, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))
    Console().print(table_of(rounds, arguments.seed))
    return 0 if all(played.clean for played in rounds) else 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("chaos", description=__doc__)
    top.add_argument("--fault", action="append", choices=list(FAULTS), help="only this one; may be said several times")
    top.add_argument("--orders", type=int, default=600, help="orders a round")
    top.add_argument("--rate", type=float, default=25, help="orders a second")
    top.add_argument("--mix", type=int, default=3, help="how many faults of the random mix follow")
    top.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    top.add_argument(
        "--mutation", default="", choices=["", "no-persistence", "ack-first", "no-inbox", "no-confirms"], help="take a safety away"
    )
    top.add_argument("--out", type=Path, default=Path(".local/chaos.json"))
    return top


async def run(faults: Sequence[str], orders: int, rate: float, seed: int, mutation: str = "") -> list[Round]:
    chance = random.Random(seed)
    played = []
    for kind in KINDS:
        if here := [fault for fault in faults if KIND_OF[fault] == kind]:
            pace = PACES[kind]
            with TemporaryDirectory(prefix="atelier-chaos-") as folder:
                async with open_site(Path(folder), mutation, kind) as site:
                    played += [await play_one(site, fault, max(1, round(orders * pace)), rate * pace, chance) for fault in here]
                    for number, lines in site.testimony().items():
                        sys.stderr.write("\n".join([f"order {number}:", *lines, ""]))
    return played


async def play_one(site: Site, fault: str, orders: int, rate: float, chance: random.Random) -> Round:
    played = await play(site, fault, orders=orders, per_second=rate, chance=chance)
    sys.stderr.write(f"{fault}: {'clean' if played.clean else 'NOT CLEAN'} {played.figures}\n")
    return played


def report_of(rounds: Sequence[Round], seed: int) -> dict[str, object]:
    sums = {name: sum(getattr(played, name) for played in rounds) for name in SUMMED}
    return sums | {"seed": seed, "faults": [played.figures for played in rounds]}


def table_of(rounds: Sequence[Round], seed: int) -> Table:
    table = Table(*(name.replace("_", " ") for name in COLUMNS), title=f"seed {seed}", box=None)
    for played in rounds:
        table.add_row(*(str(getattr(played, name)) for name in COLUMNS), style="" if played.clean else "red")
    return table


if __name__ == "__main__":
    sys.exit(main())
