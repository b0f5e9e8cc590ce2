"""`atelier bench text`: tokens per second of one vLLM server, through the gateway and the bus, and directly, in one run.

The real vLLM on a CPU, with a Llama of random weights; the same requests, seeds and lengths on both sides.
"""

import asyncio
import json
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
from benchmarks.harness import alternate, median_ratio, print_figures, private_services
from benchmarks.processes import start_process
from benchmarks.request_clients import HttpConnection
from benchmarks.vllm_server import vllm_server
from bus.observability.logs import configure_logging
from ops.settings import inherited_environment
from ops.supervisor import open_supervisor

SIDES = ("bus", "direct")
PATH = "/v1/chat/completions"
HIDDEN_SIZE, LAYER_COUNT = 1024, 8
"""About ten milliseconds a token: a smaller model would measure vLLM's HTTP server instead of the model."""


@dataclass(frozen=True)
class TokenRound:
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    print_figures(asyncio.run(measure(arguments)), as_json=arguments.json, format_text=format_text)
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        async with open_servers(Path(name)) as ports:
            for port in ports.values():
                await run_clients(port, 4, 1, arguments.tokens)
            rounds: dict[int, dict[str, list[TokenRound]]] = {}
            for clients in arguments.clients:
                rounds[clients] = {side: [] for side in SIDES}
                for side in alternate(SIDES, arguments.rounds):
                    rounds[clients][side].append(await run_clients(ports[side], clients, arguments.each, arguments.tokens))
    return summarize(rounds)


@asynccontextmanager
async def open_servers(folder: Path) -> AsyncIterator[dict[str, int]]:
    """The port of each side, once it is ready."""
    await asyncio.to_thread(write_tiny_llama, folder / "llama", hidden_size=HIDDEN_SIZE, num_layers=LAYER_COUNT)
    async with AsyncExitStack() as stack:
        opening = vllm_server(folder / "llama", folder / "vllm.log")
        server = await asyncio.to_thread(opening.__enter__)
        stack.push(opening)
        services = await stack.enter_async_context(private_services(folder))
        own = {"VLLM_SERVER_URL": server.url, "TEXT_REPETITION_PENALTY": "1", "GATEWAY_RATE_REQUESTS": "0"}
        environment = inherited_environment() | services.environment | own
        supervisor = await stack.enter_async_context(open_supervisor(["text"], environment, lambda *_: None))
        gateway = await stack.enter_async_context(start_process(["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready"))
        await supervisor.wait_until_ready(timeout_seconds=90)
        yield {"bus": gateway.port, "direct": server.port}


async def run_clients(port: int, clients: int, each: int, tokens: int) -> TokenRound:
    """`clients` that send one request after another, `each` on average: a faster client takes more of them."""
    tokens_generated, numbers = 0, iter(range(clients * each))

    async def client() -> None:
        nonlocal tokens_generated
        with closing(HttpConnection(port)) as connection:
            for number in numbers:
                status, response = await connection.request("POST", PATH, request_body(number, tokens))
                assert status == 200, response
                tokens_generated += json.loads(response)["usage"]["completion_tokens"]

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return TokenRound(tokens_generated, time.perf_counter() - began)


def request_body(number: int, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Write of harbour {number}."}]
    return {"model": "tiny", "messages": messages, "max_tokens": tokens, "seed": number, "temperature": 0.7, "top_p": 0.9}


def summarize(rounds: Mapping[int, Mapping[str, Sequence[TokenRound]]]) -> dict[str, Any]:
    """Medians of the rounds. `over_direct`: tokens per second over the bus divided by those without it, round by round."""
    return {
        "tokens_per_second": {
            str(clients): {side: round(median(rates(results)), 1) for side, results in sides.items()} for clients, sides in rounds.items()
        },
        "over_direct": {str(clients): median_ratio(rates(sides["bus"]), rates(sides["direct"])) for clients, sides in rounds.items()},
        "tokens_each_round": {
            str(clients): {side: results[0].tokens for side, results in sides.items()} for clients, sides in rounds.items()
        },
    }


def rates(rounds: Sequence[TokenRound]) -> list[float]:
    return [token_round.rate for token_round in rounds]


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'clients':>8} {'bus, tokens/s':>14} {'direct, tokens/s':>17} {'bus over direct':>16}"]
    for clients, sides in figures["tokens_per_second"].items():
        lines.append(f"{clients:>8} {sides['bus']:>14} {sides['direct']:>17} {figures['over_direct'][clients]:>16}")
    return "\n".join(lines)
