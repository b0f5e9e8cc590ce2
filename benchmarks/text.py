"""`atelier bench text`: tokens per second of the text engines on one model of random weights, in one run, in alternating order.

`direct` is vLLM's own server on a CPU, `bus` the same server through the gateway, the bus and the text actor; `embedded` the engine in the
executor, without a bus; `generate` transformers' own loop on static batches. The same requests and lengths, one thread each.
"""

import asyncio
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from actors.engines.language.tiny_llama import write_tiny_llama
from benchmarks.harness import alternate, median_ratio, print_figures, show_progress
from benchmarks.prefix_cache import measure_prefix_cache
from benchmarks.text_sides import SIDES, VLLM_SIDES, TokenRound, open_sides
from benchmarks.vllm_server import VLLM_PYTHON
from bus.observability.logs import configure_logging

HIDDEN_SIZE, LAYER_COUNT = 1024, 8
"""About ten milliseconds a token: a smaller model would measure vLLM's HTTP server instead of the model."""
MAX_SECONDS = 1500
NO_VLLM = "vLLM is not installed; `make venv-vllm` installs it"
RATIOS = {"over_direct": ("bus", "direct"), "over_generate": ("embedded", "generate"), "over_vllm": ("embedded", "direct")}
"""The name of each ratio, and its two sides."""


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    print_figures(asyncio.run(measure(arguments)), as_json=arguments.json, format_text=format_text)
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    """Sides of vLLM are left out where it is not installed, unless they are named. Raises TimeoutError after MAX_SECONDS."""
    sides = tuple(arguments.sides or (SIDES if VLLM_PYTHON.exists() else [side for side in SIDES if side not in VLLM_SIDES]))
    rounds: dict[int, dict[str, list[TokenRound]]] = {}
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        async with asyncio.timeout(MAX_SECONDS):
            model = Path(name) / "llama"
            await asyncio.to_thread(write_tiny_llama, model, hidden_size=HIDDEN_SIZE, num_layers=LAYER_COUNT)
            show_progress(f"opening {', '.join(sides)}")
            async with open_sides(sides, Path(name), model, arguments.dtype) as run:
                for side in sides:
                    await run[side](4, 1, arguments.tokens)
                for clients in arguments.clients:
                    rounds[clients] = {side: [] for side in sides}
                    for side in alternate(sides, arguments.rounds):
                        rounds[clients][side].append(await run[side](clients, arguments.each, arguments.tokens))
                        show_progress(f"{clients} clients, {side}: {rounds[clients][side][-1].rate:.1f} tokens/s")
            show_progress("the prefix cache")
            prefix = await measure_prefix_cache(model, arguments.dtype, arguments.rounds) if "embedded" in sides else None
    left_out = {side: NO_VLLM for side in VLLM_SIDES if side not in sides and not VLLM_PYTHON.exists()}
    return summarize(rounds) | {"prefix_cache": prefix, "left_out": left_out, "dtype": arguments.dtype}


def summarize(rounds: Mapping[int, Mapping[str, Sequence[TokenRound]]]) -> dict[str, Any]:
    """Medians of the rounds. Each ratio divides the tokens per second of two sides round by round, and is absent without one of them."""
    return {
        "tokens_per_second": {
            str(clients): {side: round(median(rates(results)), 1) for side, results in sides.items()} for clients, sides in rounds.items()
        },
        "tokens_each_round": {
            str(clients): {side: results[0].tokens for side, results in sides.items()} for clients, sides in rounds.items()
        },
    } | {
        name: {
            str(clients): median_ratio(rates(sides[one]), rates(sides[other]))
            for clients, sides in rounds.items()
            if one in sides and other in sides
        }
        for name, (one, other) in RATIOS.items()
    }


def rates(rounds: Sequence[TokenRound]) -> list[float]:
    return [token_round.rate for token_round in rounds]


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"tokens per second, {figures['dtype']}:"]
    for clients, sides in figures["tokens_per_second"].items():
        lines.append(f"{clients:>4} clients  " + "  ".join(f"{side} {rate}" for side, rate in sides.items()))
    for name, (one, other) in RATIOS.items():
        lines += [f"{one} over {other}, {clients} clients: {ratio}" for clients, ratio in figures[name].items()]
    if prefix := figures["prefix_cache"]:
        lines.append(f"prefix cache: the first token comes {prefix['speedup']} times as fast, {prefix['first_token_ms']} ms")
    return "\n".join([*lines, *(f"{side} is left out: {reason}" for side, reason in figures["left_out"].items())])
