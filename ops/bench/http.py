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

from bus.logs import open_logs
from ops.bench.callers import Connection
from ops.bench.processes import child
from ops.crew import open_crew
from ops.demo import tiny_models
from ops.local.stack import local_stack
from ops.settings import LocalSettings, inherited

THREADS = max(1, (os.cpu_count() or 2) - 1)
SIDES = ("gateway", "inline")
HEALTH_SECONDS = 0.05
"""`/health` is asked so often."""


@dataclass
class Times:
    """Seconds: of each question, of each look at `/health`, and of the whole."""

    questions: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    whole: float = 0.0


def bench(arguments: Namespace) -> int:
    open_logs("ERROR")
    said = asyncio.run(measured(arguments))
    sys.stdout.write((json.dumps(said) if arguments.json else in_words(said)) + "\n")
    return 0


async def measured(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        made = await tiny_models(arguments.models or folder / "models")
        async with open_sides(made["tiny-llava"], folder, arguments.tokens) as ports:
            for port in ports.values():
                await asked(port, 1, 1)
            taken: dict[int, dict[str, list[Times]]] = {}
            for clients in arguments.clients:
                taken[clients] = {side: [] for side in SIDES}
                for number in range(arguments.rounds):
                    for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                        taken[clients][side].append(await asked(ports[side], clients, max(arguments.questions, clients)))
    return figures(taken)


@asynccontextmanager
async def open_sides(model: Path, folder: Path, tokens: int) -> AsyncIterator[dict[str, int]]:
    """The port of each side, once it is ready."""
    parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
    own = {"VLM_MODEL": str(model), "VLM_THREADS": str(THREADS), "CONSULT_MAX_NEW_TOKENS": str(tokens), "GATEWAY_RATE_REQUESTS": "0"}
    inline = {"model": str(model), "max_new_tokens": tokens, "threads": THREADS}
    async with AsyncExitStack() as opened:
        stack = await opened.enter_async_context(local_stack(parts))
        environment = inherited() | stack.environment | own
        crew = await opened.enter_async_context(open_crew(["consult"], environment, lambda *_: None))
        front = await opened.enter_async_context(child(["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready"))
        plain = await opened.enter_async_context(child(["ops.bench.inline_server", json.dumps(inline)], environment))
        await crew.ready(timeout_seconds=90)
        yield {"gateway": port_in(front.said), "inline": port_in(plain.said)}


def port_in(said: str) -> int:
    return int(said.rpartition("http://127.0.0.1:")[2].split('"')[0].split()[0])


async def asked(port: int, clients: int, questions: int) -> Times:
    """So many clients, each with one question after another, until so many are answered. `/health` is watched meanwhile."""
    times, left = Times(), questions
    watching = asyncio.create_task(watch(port, times.health))
    began = time.perf_counter()

    async def client() -> None:
        nonlocal left
        with closing(Connection(port)) as connection:
            while left > 0:
                left -= 1
                at = time.perf_counter()
                status, answer = await connection.call("POST", "/predict", QUESTION)
                assert status == 200, answer
                times.questions.append(time.perf_counter() - at)

    await asyncio.gather(*(client() for _ in range(clients)))
    times.whole = time.perf_counter() - began
    watching.cancel()
    await asyncio.wait({watching})
    await asyncio.sleep(0)  # the connections close
    return times


async def watch(port: int, taken: list[float]) -> None:
    """An unanswered look counts, too, with the time that it has waited so far."""
    with closing(Connection(port)) as connection:
        while True:
            at = time.perf_counter()
            try:
                await connection.call("GET", "/health")
            finally:
                taken.append(time.perf_counter() - at)
            await asyncio.sleep(HEALTH_SECONDS)


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


QUESTION = {"instances": [{"prompt": "What is to be seen?", "image": picture()}]}


def figures(taken: Mapping[int, Mapping[str, Sequence[Times]]]) -> dict[str, Any]:
    """Medians of the rounds. `over_inline`: questions a second through the gateway over those of the inline server, round by round."""
    return {
        "clients": {str(clients): {side: in_short(rounds) for side, rounds in sides.items()} for clients, sides in taken.items()},
        "over_inline": {
            str(clients): round(median(b.whole / a.whole for a, b in zip(sides["gateway"], sides["inline"], strict=True)), 3)
            for clients, sides in taken.items()
        },
    }


def in_short(rounds: Sequence[Times]) -> dict[str, float]:
    questions = sorted(seconds for times in rounds for seconds in times.questions)
    cuts = quantiles(questions, n=100) if len(questions) > 1 else questions * 99
    return {
        "per_second": round(median(len(times.questions) / times.whole for times in rounds), 2),
        "p50_ms": round(cuts[49] * 1000),
        "p99_ms": round(cuts[98] * 1000),
        "health_worst_ms": round(max(seconds for times in rounds for seconds in times.health) * 1000),
    }


def in_words(said: Mapping[str, Any]) -> str:
    lines = [f"{'clients':>8} {'side':>8} {'questions/s':>12} {'p50 ms':>8} {'p99 ms':>8} {'worst /health ms':>17}"]
    for clients, sides in said["clients"].items():
        for side, seen in sides.items():
            lines.append(
                f"{clients:>8} {side:>8} {seen['per_second']:>12} {seen['p50_ms']:>8} {seen['p99_ms']:>8} {seen['health_worst_ms']:>17}"
            )
    lines.append(f"questions a second over the inline server: {said['over_inline']}")
    return "\n".join(lines)
