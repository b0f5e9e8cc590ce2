"""`atelier bench …`: the arguments of each benchmark, which is the function `bench` in the module of its name, imported when it runs."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS

FIGURES_FILE = Path(".local/bench/figures.json")
TEXT_SIDES = ("bus", "direct", "embedded", "generate")
VISION_FAMILIES = (*("llava", "llava-next", "llava-onevision", "qwen2.5-vl", "qwen3-vl", "internvl", "gemma3", "idefics3", "smolvlm"),)
STARTS = (
    "upload",
    "ledger",
    "webhook",
    "watermark",
    "overlay",
    "conversations",
    "variants",
    "job_variants",
    "image_generation",
    "dead-letters",
    "gateway",
)
"""What `bench start` starts: the CPU actors that need no other server, and the gateway."""
MODULE_NAMES = {"guard": "ratio_guard"}
"""Benches whose module has another name than the command."""
LazyCommand = Callable[[str, str], Callable[[Namespace], int]]


def add_benches(commands: Any, lazy_command: LazyCommand) -> None:
    """Add `bench` to the subcommands of a parser."""
    benches = commands.add_parser("bench", help="measure a component").add_subparsers(title="benches", required=True, metavar="BENCH")
    for name, (summary, add_arguments) in BENCHES.items():
        bench = benches.add_parser(name, help=summary)
        add_arguments(bench)
        bench.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        module = MODULE_NAMES.get(name, name.replace("-", "_"))
        bench.set_defaults(call=lazy_command(f"benchmarks.{module}", "bench"))


def bus(bench: ArgumentParser) -> None:
    bench.add_argument("--sides", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="SIDE", help=", ".join(PEERS))
    bench.add_argument("--sizes", type=int, nargs="+", default=[1_000, 64_000], help="size of a message, in bytes")
    bench.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 64, 256])
    bench.add_argument("--rounds", type=int, default=3)
    bench.add_argument("--seconds", type=float, default=1.0, help="approximate duration of each side in each round")


def pipeline(bench: ArgumentParser) -> None:
    bench.add_argument("--orders", type=int, default=20, help="for each side and round")
    bench.add_argument("--rounds", type=int, default=3)
    bench.add_argument("--steps", type=int, default=20, help="denoising steps of an order")
    bench.add_argument("--pixels", type=int, default=256, help="width and height of an image")
    bench.add_argument("--webhook-ms", type=float, default=50, help="how long the backend takes to answer a webhook")
    bench.add_argument("--models", type=Path, help="a folder with the tiny models; default: created for the run")


def http(bench: ArgumentParser) -> None:
    bench.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    bench.add_argument("--questions", type=int, default=32, help="requests of each side and round; at least one a client")
    bench.add_argument("--tokens", type=int, default=32, help="of each answer")
    bench.add_argument("--rounds", type=int, default=3)
    bench.add_argument("--models", type=Path, help="a folder with the tiny models; default: created for the run")


def text(bench: ArgumentParser) -> None:
    bench.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    bench.add_argument("--each", type=int, default=3, help="requests of each client, for each side and round")
    bench.add_argument("--tokens", type=int, default=192, help="of each answer, at most")
    bench.add_argument("--rounds", type=int, default=3)
    bench.add_argument("--sides", nargs="+", choices=TEXT_SIDES, help="default: all; without vLLM, those that need none")
    bench.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="precision of every side")


def growth(bench: ArgumentParser) -> None:
    bench.add_argument("--backlogs", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="messages waiting at the start")
    bench.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4], help="processes of one actor")
    bench.add_argument("--counted", type=int, default=500, help="messages that are timed; fewer than half of the backlog")
    bench.add_argument("--rounds", type=int, default=2)


def start(bench: ArgumentParser) -> None:
    bench.epilog = "example: atelier bench start --steps upload gateway --rounds 3 --json"
    bench.add_argument("--steps", nargs="+", choices=STARTS, default=list(STARTS), metavar="STEP", help=", ".join(STARTS))
    bench.add_argument("--rounds", type=int, default=5, help="counted starts of each, in alternating order")


def burst(bench: ArgumentParser) -> None:
    bench.add_argument("--orders", type=int, default=50_000)


def ledger(bench: ArgumentParser) -> None:
    bench.add_argument("--events", type=int, default=5_000)
    bench.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000], help="rows of the job table and of the dead-letter table")


def gateway(bench: ArgumentParser) -> None:
    bench.add_argument("--seconds", type=float, default=10.0, help="for each side and number of callers")
    bench.add_argument("--rounds", type=int, default=5, help="rounds in which the sides take turns")
    bench.add_argument("--callers", type=int, nargs="+", default=[1, 16, 64, 256])
    bench.add_argument("--waiting", type=int, default=1000, help="clients of the load run, each waiting for a slow reply; 0: no load run")


def vlm(bench: ArgumentParser) -> None:
    bench.add_argument("--model", help="a folder or a hub id; default: random weights, created for the run")
    bench.add_argument("--families", nargs="+", choices=VISION_FAMILIES, default=["llava"], help="whose checkpoints are created")
    bench.add_argument("--tokens", type=int, default=48, help="of each answer")
    bench.add_argument("--rounds", type=int, default=3)


def executor(bench: ArgumentParser) -> None:
    bench.add_argument("--quick", action="store_true", help="small numbers: seconds instead of minutes")


def gpu(bench: ArgumentParser) -> None:
    bench.add_argument("--size", choices=["auto", "real", "tiny"], default="auto", help="auto: real where there is a GPU")


def dead_letters(bench: ArgumentParser) -> None:
    bench.add_argument("--letters", type=int, default=10_000)


def scaling(bench: ArgumentParser) -> None:
    bench.add_argument("--seconds", type=float, default=10.0, help="the service time of every order")
    bench.add_argument("--times", type=Path, help="a file of measured service times instead, one a line")
    bench.add_argument("--rate", type=float, required=True, help="orders that arrive per second")
    bench.add_argument("--wait", type=float, default=10.0, help="seconds that 95%% of orders may wait at most")
    bench.add_argument("--slots", type=int, default=1, help="orders that one replica processes at once")


def all_benches(bench: ArgumentParser) -> None:
    bench.add_argument("--only", nargs="+", metavar="BENCH", help="only these benchmarks")
    bench.add_argument("--out", type=Path, default=FIGURES_FILE, help="where the figures are written")
    bench.add_argument("--page", type=Path, help="a Markdown page whose tables are rewritten from the figures")


def guard(bench: ArgumentParser) -> None:
    bench.add_argument("--figures", type=Path, default=FIGURES_FILE, help="the file that `atelier bench all` wrote")
    bench.add_argument("--tolerance", type=float, default=0.25, help="the share by which a ratio may be worse")
    bench.add_argument("--keep", action="store_true", help="store these ratios as the new baseline")


BENCHES: dict[str, tuple[str, Callable[[ArgumentParser], None]]] = {
    "bus": ("messages per second: this bus, aio-pika, FastStream, Celery, Dramatiq and Taskiq", bus),
    "pipeline": ("image orders per second: over the bus, in the inline worker, and without a bus", pipeline),
    "http": ("requests through the gateway, and through a server that calls the model inside the request", http),
    "text": ("tokens per second: vLLM over the bus and directly, the embedded engine, transformers' generate", text),
    "growth": ("messages per second with more actor processes, and with longer backlogs", growth),
    "start": ("seconds and processor time until CPU actors that need no other server, and the gateway, are ready; memory", start),
    "burst": ("fifty thousand orders at once: dropped messages, and the memory of each process", burst),
    "ledger": ("events stored per second; lists and groups with many rows", ledger),
    "gateway": ("requests and replies over HTTP, over the bus client and over bare aio-pika", gateway),
    "vlm": ("questions about images, 1, 4 and 16 at once: the engine and transformers' generate", vlm),
    "executor": ("event-loop lag, step batching against its alternatives, cancel latency, device use", executor),
    "gpu": ("images and tokens per second at the real sizes, with random weights", gpu),
    "all": ("every benchmark of docs/benchmarks.md that has a table of its own, one after another", all_benches),
    "guard": ("which ratios got worse than the stored baseline", guard),
    "scaling": ("the replicas that an arrival rate and a maximum wait need; a simulation", scaling),
    "dead-letters": ("dead letters ingested, grouped and replayed", dead_letters),
}
