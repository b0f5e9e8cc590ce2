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

from actors.engines.language.tiny_llama import write_tiny_llama
from benchmarks.http import parse_port
from benchmarks.processes import start_process
from benchmarks.request_clients import HttpConnection
from benchmarks.vllm_server import vllm_server
from bus.observability.logs import configure_logging
from ops.local.stack import local_stack
from ops.settings import LocalSettings, inherited_environment
from ops.supervisor import open_supervisor

SIDES = ("bus", "direct")
PATH = "/v1/chat/completions"
HIDDEN_SIZE, LAYER_COUNT = 1024, 8
"""A token takes this model some ten milliseconds: less would measure vLLM's HTTP server, not its model."""


@dataclass(frozen=True)
class TokenRound:
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    said = asyncio.run(measure(arguments))
    sys.stdout.write((json.dumps(said) if arguments.json else format_text(said)) + "\n")
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        async with open_servers(Path(name)) as ports:
            for port in ports.values():
                await run_clients(port, 4, 1, arguments.tokens)
            taken: dict[int, dict[str, list[TokenRound]]] = {}
            for clients in arguments.clients:
                taken[clients] = {side: [] for side in SIDES}
                for number in range(arguments.rounds):
                    for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                        taken[clients][side].append(await run_clients(ports[side], clients, arguments.each, arguments.tokens))
    return summarize(taken)


@asynccontextmanager
async def open_servers(folder: Path) -> AsyncIterator[dict[str, int]]:
    """The port of each side, once it is ready."""
    parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
    await asyncio.to_thread(write_tiny_llama, folder / "llama", hidden_size=HIDDEN_SIZE, num_layers=LAYER_COUNT)
    async with AsyncExitStack() as opened:
        serving = vllm_server(folder / "llama", folder / "vllm.log")
        server = await asyncio.to_thread(serving.__enter__)
        opened.push(serving)
        stack = await opened.enter_async_context(local_stack(parts))
        own = {"VLLM_SERVER_URL": server.url, "TEXT_REPETITION_PENALTY": "1", "GATEWAY_RATE_REQUESTS": "0"}
        environment = inherited_environment() | stack.environment | own
        crew = await opened.enter_async_context(open_supervisor(["text"], environment, lambda *_: None))
        front = await opened.enter_async_context(start_process(["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready"))
        await crew.wait_until_ready(timeout_seconds=90)
        yield {"bus": parse_port(front.ready_output), "direct": server.port}


async def run_clients(port: int, clients: int, each: int, tokens: int) -> TokenRound:
    """So many clients, with so many questions each, one after another. Whoever is done early takes from the others."""
    made, left = 0, iter(range(clients * each))

    async def client() -> None:
        nonlocal made
        with closing(HttpConnection(port)) as connection:
            for number in left:
                status, answer = await connection.request("POST", PATH, request_body(number, tokens))
                assert status == 200, answer
                made += json.loads(answer)["usage"]["completion_tokens"]

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return TokenRound(made, time.perf_counter() - began)


def request_body(number: int, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Write of harbour {number}."}]
    return {"model": "tiny", "messages": messages, "max_tokens": tokens, "seed": number, "temperature": 0.7, "top_p": 0.9}


def summarize(taken: Mapping[int, Mapping[str, Sequence[TokenRound]]]) -> dict[str, Any]:
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


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'clients':>8} {'bus, tokens/s':>14} {'direct, tokens/s':>17} {'bus over direct':>16}"]
    for clients, sides in figures["tokens_per_second"].items():
        lines.append(f"{clients:>8} {sides['bus']:>14} {sides['direct']:>17} {figures['over_direct'][clients]:>16}")
    return "\n".join(lines)
