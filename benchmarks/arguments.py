"""`atelier bench …`: what each bench takes. A bench is `bench` in the module of its name, imported when it runs."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS

FIGURES_FILE = Path(".local/bench/figures.json")
LazyCommand = Callable[[str, str], Callable[[Namespace], int]]


def add_benches(commands: Any, lazy_command: LazyCommand) -> None:
    """Add `bench` to the subcommands of a parser."""
    benches = commands.add_parser("bench", help="measure a part").add_subparsers(title="benches", required=True, metavar="BENCH")
    for name, (about, add_arguments) in BENCHES.items():
        bench = benches.add_parser(name, help=about)
        add_arguments(bench)
        bench.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        bench.set_defaults(call=lazy_command(f"benchmarks.{name.replace('-', '_')}", "bench"))


def bus(bench: ArgumentParser) -> None:
    bench.add_argument("--sides", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="SIDE", help=", ".join(PEERS))
    bench.add_argument("--sizes", type=int, nargs="+", default=[1_000, 64_000], help="of a message, in bytes")
    bench.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 256])
    bench.add_argument("--rounds", type=int, default=3)
    bench.add_argument("--seconds", type=float, default=1.0, help="for each side and round, about")


def pipeline(bench: ArgumentParser) -> None:
    bench.add_argument("--orders", type=int, default=20, help="for each side and round")
    bench.add_argument("--rounds", type=int, default=3)
    bench.add_argument("--steps", type=int, default=20, help="denoising steps of an order")
    bench.add_argument("--pixels", type=int, default=256, help="width and height of a picture")
    bench.add_argument("--webhook-ms", type=float, default=50, help="how long the backend takes to answer a webhook")
    bench.add_argument("--models", type=Path, help="a folder with the tiny models; default: made for the bench")


def http(bench: ArgumentParser) -> None:
    bench.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    bench.add_argument("--questions", type=int, default=32, help="for each side and round; at least one a client")
    bench.add_argument("--tokens", type=int, default=32, help="of each answer")
    bench.add_argument("--rounds", type=int, default=3)
    bench.add_argument("--models", type=Path, help="a folder with the tiny models; default: made for the bench")


def text(bench: ArgumentParser) -> None:
    bench.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    bench.add_argument("--each", type=int, default=3, help="questions of each client, for each side and round")
    bench.add_argument("--tokens", type=int, default=192, help="of each answer, at most")
    bench.add_argument("--rounds", type=int, default=3)


def growth(bench: ArgumentParser) -> None:
    bench.add_argument("--backlogs", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="messages that wait")
    bench.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4], help="processes of one actor")
    bench.add_argument("--counted", type=int, default=500, help="messages that are timed; fewer than half of what waits")
    bench.add_argument("--rounds", type=int, default=2)
    bench.add_argument("--models", type=Path, help="a folder with the tiny models; default: made for the bench")


def burst(bench: ArgumentParser) -> None:
    bench.add_argument("--orders", type=int, default=50_000)


def ledger(bench: ArgumentParser) -> None:
    bench.add_argument("--events", type=int, default=5_000)
    bench.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000], help="jobs, and as many dead letters")


def gateway(bench: ArgumentParser) -> None:
    bench.add_argument("--seconds", type=float, default=10.0, help="for each side and number of callers")
    bench.add_argument("--rounds", type=int, default=5, help="in which the sides take turns")
    bench.add_argument("--callers", type=int, nargs="+", default=[1, 16, 64, 256])
    bench.add_argument("--waiting", type=int, default=1000, help="clients of the load run, each of which waits for a slow reply; 0: none")


def vlm(bench: ArgumentParser) -> None:
    bench.add_argument("--model", help="a folder or a hub id; default: random weights, made for the bench")
    bench.add_argument("--tokens", type=int, default=48, help="of each answer")
    bench.add_argument("--rounds", type=int, default=3)


def executor(bench: ArgumentParser) -> None:
    bench.add_argument("--quick", action="store_true", help="small numbers, in seconds instead of minutes")


def gpu(bench: ArgumentParser) -> None:
    bench.add_argument("--size", choices=["auto", "real", "tiny"], default="auto", help="auto: real where there is a GPU")


def dead_letters(bench: ArgumentParser) -> None:
    bench.add_argument("--letters", type=int, default=10_000)


def scaling(bench: ArgumentParser) -> None:
    bench.add_argument("--seconds", type=float, default=10.0, help="one order's service time")
    bench.add_argument("--times", type=Path, help="measured service times instead, one a line")
    bench.add_argument("--rate", type=float, required=True, help="orders that come in a second")
    bench.add_argument("--wait", type=float, default=10.0, help="seconds that 95 of 100 orders may wait")
    bench.add_argument("--slots", type=int, default=1, help="orders that one replica serves at once")


def all_benches(bench: ArgumentParser) -> None:
    bench.add_argument("--only", nargs="+", metavar="BENCH", help="only these")
    bench.add_argument("--out", type=Path, default=FIGURES_FILE, help="where the figures are written")
    bench.add_argument("--page", type=Path, help="a page whose tables are written from the figures")


def guard(bench: ArgumentParser) -> None:
    bench.add_argument("--figures", type=Path, default=FIGURES_FILE, help="what `atelier bench all` wrote")
    bench.add_argument("--tolerance", type=float, default=0.25, help="a ratio may be so much worse, as a share")
    bench.add_argument("--keep", action="store_true", help="keep these ratios as those to be compared with")


BENCHES: dict[str, tuple[str, Callable[[ArgumentParser], None]]] = {
    "bus": ("messages a second: this bus beside aio-pika, FastStream, Celery, Dramatiq and Taskiq", bus),
    "pipeline": ("image orders a second: over the bus, the inline way, and without a bus", pipeline),
    "http": ("questions through the gateway, and through a server that calls the model inside the request", http),
    "text": ("tokens a second of one vLLM, through HTTP and the bus, and asked directly", text),
    "growth": ("more actors, more messages waiting; start-up and memory of each process", growth),
    "burst": ("fifty thousand orders at once: what is dropped, and how much memory each process takes", burst),
    "ledger": ("events kept a second; lists and groups with many rows", ledger),
    "gateway": ("requests and replies over HTTP, over the bus client and over bare aio-pika", gateway),
    "vlm": ("questions about pictures in batches of 1, 4 and 8", vlm),
    "executor": ("the loop's lag, step batching against its rivals, cancel, how busy the device is", executor),
    "gpu": ("pictures and tokens a second at the real sizes, with random weights", gpu),
    "all": ("every bench, in ten minutes on two cores", all_benches),
    "guard": ("which ratio got worse since they were kept", guard),
    "scaling": ("from service times to replicas, for an arrival rate and a wait; a simulation", scaling),
    "dead-letters": ("dead letters taken in, grouped and sent again", dead_letters),
}
