"""`atelier bench text`: tokens a second of one vLLM, asked through HTTP and the bus, and asked directly, in one run.

The real vLLM on a CPU, behind its own server, with a Llama of random weights; the same questions, seeds and lengths on both sides.
"""

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from actors.engines.tiny_llama import write_llama
from bus.logs import open_logs
from ops.bench.callers import Connection
from ops.bench.http import port_in
from ops.bench.processes import child
from ops.crew import open_crew
from ops.local.stack import local_stack
from ops.local.vllm import vllm_server
from ops.settings import LocalSettings, inherited

SIDES = ("bus", "direct")
PATH = "/v1/chat/completions"
HIDDEN, LAYERS = 1024, 8
"""A token takes this model some ten milliseconds: less would measure vLLM's HTTP server, not its model."""


@dataclass(frozen=True)
class Round:
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def bench(arguments: Namespace) -> int:
    open_logs("ERROR")
    said = asyncio.run(measured(arguments))
    sys.stdout.write((json.dumps(said) if arguments.json else in_words(said)) + "\n")
    return 0


async def measured(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        async with open_sides(Path(name)) as ports:
            for port in ports.values():
                await asked(port, 4, 1, arguments.tokens)
            taken: dict[int, dict[str, list[Round]]] = {}
            for clients in arguments.clients:
                taken[clients] = {side: [] for side in SIDES}
                for number in range(arguments.rounds):
                    for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                        taken[clients][side].append(await asked(ports[side], clients, arguments.each, arguments.tokens))
    return figures(taken)


@asynccontextmanager
async def open_sides(folder: Path) -> AsyncIterator[dict[str, int]]:
    """The port of each side, once it is ready."""
    parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
    await asyncio.to_thread(write_llama, folder / "llama", hidden=HIDDEN, layers=LAYERS)
    async with AsyncExitStack() as opened:
        serving = vllm_server(folder / "llama", folder / "vllm.log")
        server = await asyncio.to_thread(serving.__enter__)
        opened.push(serving)
        stack = await opened.enter_async_context(local_stack(parts))
        own = {"VLLM_SERVER_URL": server.url, "TEXT_REPETITION_PENALTY": "1", "GATEWAY_RATE_REQUESTS": "0"}
        environment = inherited() | stack.environment | own
        crew = await opened.enter_async_context(open_crew(["text"], environment, lambda *_: None))
        front = await opened.enter_async_context(child(["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready"))
        await crew.ready(timeout_seconds=90)
        yield {"bus": port_in(front.said), "direct": server.port}


async def asked(port: int, clients: int, each: int, tokens: int) -> Round:
    """So many clients, with so many questions each, one after another. Whoever is done early takes from the others."""
    made, left = 0, iter(range(clients * each))

    async def client() -> None:
        nonlocal made
        with closing(Connection(port)) as connection:
            for number in left:
                status, answer = await connection.call("POST", PATH, question(number, tokens))
                assert status == 200, answer
                made += json.loads(answer)["usage"]["completion_tokens"]

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Round(made, time.perf_counter() - began)


def question(number: int, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Write of harbour {number}."}]
    return {"model": "tiny", "messages": messages, "max_tokens": tokens, "seed": number, "temperature": 0.7, "top_p": 0.9}


def figures(taken: Mapping[int, Mapping[str, Sequence[Round]]]) -> dict[str, Any]:
    """Medians of the rounds. `over_direct`: tokens a second over the bus, of those without it, round by round."""
    return {
        "tokens_per_second": {
            str(clients): {side: round(median(one.rate for one in rounds), 1) for side, rounds in sides.items()}
            for clients, sides in taken.items()
        },
        "over_direct": {
            str(clients): round(median(a.rate / b.rate for a, b in zip(sides["bus"], sides["direct"], strict=True)), 3)
            for clients, sides in taken.items()
        },
        "tokens_each_round": {str(clients): {side: rounds[0].tokens for side, rounds in sides.items()} for clients, sides in taken.items()},
    }


def in_words(said: Mapping[str, Any]) -> str:
    lines = [f"{'clients':>8} {'bus, tokens/s':>14} {'direct, tokens/s':>17} {'bus over direct':>16}"]
    for clients, sides in said["tokens_per_second"].items():
        lines.append(f"{clients:>8} {sides['bus']:>14} {sides['direct']:>17} {said['over_direct'][clients]:>16}")
    return "\n".join(lines)
