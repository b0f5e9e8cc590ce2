"""`atelier bench http`: questions about a picture through the gateway, and through a server that calls the model inside the request.

The same tiny LLaVA with random weights and one thread on both sides, answers of the same length. While the model works, `/health` is
asked again and again: its slowest answer says whether the server still lives.
"""

import asyncio
import base64
import io
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from benchmarks.processes import start_process
from benchmarks.request_clients import HttpConnection
from bus.observability.logs import configure_logging
from ops.commands.demo import make_tiny_models_in_subprocess
from ops.local.stack import local_stack
from ops.settings import LocalSettings, inherited_environment
from ops.supervisor import open_supervisor

THREADS = max(1, (os.cpu_count() or 2) - 1)
SIDES = ("gateway", "inline")
HEALTH_POLL_SECONDS = 0.05
"""`/health` is asked so often."""


@dataclass
class RoundTimes:
    """Seconds: of each question, of each look at `/health`, and of the whole."""

    request_seconds: list[float] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    total_seconds: float = 0.0


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    said = asyncio.run(measure(arguments))
    sys.stdout.write((json.dumps(said) if arguments.json else format_text(said)) + "\n")
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        made = await make_tiny_models_in_subprocess(arguments.models or folder / "models")
        async with open_servers(made["tiny-llava"], folder, arguments.tokens) as ports:
            for port in ports.values():
                await run_clients(port, 1, 1)
            taken: dict[int, dict[str, list[RoundTimes]]] = {}
            for clients in arguments.clients:
                taken[clients] = {side: [] for side in SIDES}
                for number in range(arguments.rounds):
                    for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                        taken[clients][side].append(await run_clients(ports[side], clients, max(arguments.questions, clients)))
    return summarize(taken)


@asynccontextmanager
async def open_servers(model: Path, folder: Path, tokens: int) -> AsyncIterator[dict[str, int]]:
    """The port of each side, once it is ready."""
    parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
    own = {"VLM_MODEL": str(model), "VLM_THREADS": str(THREADS), "CONSULT_MAX_NEW_TOKENS": str(tokens), "GATEWAY_RATE_REQUESTS": "0"}
    inline = {"model": str(model), "max_new_tokens": tokens, "threads": THREADS}
    async with AsyncExitStack() as opened:
        stack = await opened.enter_async_context(local_stack(parts))
        environment = inherited_environment() | stack.environment | own
        crew = await opened.enter_async_context(open_supervisor(["consult"], environment, lambda *_: None))
        front = await opened.enter_async_context(start_process(["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready"))
        plain = await opened.enter_async_context(start_process(["benchmarks.inline_server", json.dumps(inline)], environment))
        await crew.wait_until_ready(timeout_seconds=90)
        yield {"gateway": parse_port(front.ready_output), "inline": parse_port(plain.ready_output)}


def parse_port(ready_output: str) -> int:
    return int(ready_output.rpartition("http://127.0.0.1:")[2].split('"')[0].split()[0])


async def run_clients(port: int, clients: int, requests: int) -> RoundTimes:
    """So many clients, each with one question after another, until so many are answered. `/health` is watched meanwhile."""
    times, left = RoundTimes(), requests
    watching = asyncio.create_task(poll_health(port, times.health_seconds))
    began = time.perf_counter()

    async def client() -> None:
        nonlocal left
        with closing(HttpConnection(port)) as connection:
            while left > 0:
                left -= 1
                at = time.perf_counter()
                status, answer = await connection.request("POST", "/predict", REQUEST_BODY)
                assert status == 200, answer
                times.request_seconds.append(time.perf_counter() - at)

    await asyncio.gather(*(client() for _ in range(clients)))
    times.total_seconds = time.perf_counter() - began
    watching.cancel()
    await asyncio.wait({watching})
    await asyncio.sleep(0)  # the connections close
    return times


async def poll_health(port: int, latencies: list[float]) -> None:
    """An unanswered look counts, too, with the time that it has waited so far."""
    with closing(HttpConnection(port)) as connection:
        while True:
            at = time.perf_counter()
            try:
                await connection.request("GET", "/health")
            finally:
                latencies.append(time.perf_counter() - at)
            await asyncio.sleep(HEALTH_POLL_SECONDS)


def picture_base64() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


REQUEST_BODY = {"instances": [{"prompt": "What is to be seen?", "image": picture_base64()}]}


def summarize(taken: Mapping[int, Mapping[str, Sequence[RoundTimes]]]) -> dict[str, Any]:
    """Medians of the rounds. `over_inline`: questions a second through the gateway over those of the inline server, round by round."""
    return {
        "clients": {str(clients): {side: summarize_rounds(rounds) for side, rounds in sides.items()} for clients, sides in taken.items()},
        "over_inline": {
            str(clients): round(
                median(b.total_seconds / a.total_seconds for a, b in zip(sides["gateway"], sides["inline"], strict=True)), 3
            )
            for clients, sides in taken.items()
        },
    }


def summarize_rounds(rounds: Sequence[RoundTimes]) -> dict[str, float]:
    questions = sorted(seconds for times in rounds for seconds in times.request_seconds)
    cuts = quantiles(questions, n=100) if len(questions) > 1 else questions * 99
    return {
        "per_second": round(median(len(times.request_seconds) / times.total_seconds for times in rounds), 2),
        "p50_ms": round(cuts[49] * 1000),
        "p99_ms": round(cuts[98] * 1000),
        "health_worst_ms": round(max(seconds for times in rounds for seconds in times.health_seconds) * 1000),
    }


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'clients':>8} {'side':>8} {'questions/s':>12} {'p50 ms':>8} {'p99 ms':>8} {'worst /health ms':>17}"]
    for clients, sides in figures["clients"].items():
        for side, seen in sides.items():
            lines.append(
                f"{clients:>8} {side:>8} {seen['per_second']:>12} {seen['p50_ms']:>8} {seen['p99_ms']:>8} {seen['health_worst_ms']:>17}"
            )
    lines.append(f"questions a second over the inline server: {figures['over_inline']}")
    return "\n".join(lines)
