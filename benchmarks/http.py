"""`atelier bench http`: questions about an image through the gateway, and through a server that calls the model inside the request.

The same tiny LLaVA with random weights and one thread on both sides, answers of the same length. While the model computes, `/health` is
polled: its slowest response shows how long the server is blocked.
"""

import asyncio
import base64
import io
import json
import os
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from benchmarks.harness import alternate, make_tiny_models_in_subprocess, median_ratio, percentiles_ms, print_figures, private_services
from benchmarks.processes import start_process
from benchmarks.request_clients import HttpConnection
from bus.observability.logs import configure_logging
from ops.settings import inherited_environment
from ops.supervisor import open_supervisor

THREADS = max(1, (os.cpu_count() or 2) - 1)
SIDES = ("gateway", "inline")
HEALTH_POLL_SECONDS = 0.05
"""Between two polls of `/health`."""


@dataclass
class RoundTimes:
    """Seconds: of each request, of each poll of `/health`, and of the whole round."""

    request_seconds: list[float] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    total_seconds: float = 0.0


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    print_figures(asyncio.run(measure(arguments)), as_json=arguments.json, format_text=format_text)
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        models = await make_tiny_models_in_subprocess(arguments.models or folder / "models")
        async with open_servers(models["tiny-llava"], folder, arguments.tokens) as ports:
            for port in ports.values():
                await run_clients(port, 1, 1)
            rounds: dict[int, dict[str, list[RoundTimes]]] = {}
            for clients in arguments.clients:
                rounds[clients] = {side: [] for side in SIDES}
                for side in alternate(SIDES, arguments.rounds):
                    rounds[clients][side].append(await run_clients(ports[side], clients, max(arguments.questions, clients)))
    return summarize(rounds)


@asynccontextmanager
async def open_servers(model: Path, folder: Path, tokens: int) -> AsyncIterator[dict[str, int]]:
    """The port of each side, once it is ready."""
    own = {"VLM_MODEL": str(model), "VLM_THREADS": str(THREADS), "CONSULT_MAX_NEW_TOKENS": str(tokens), "GATEWAY_RATE_REQUESTS": "0"}
    inline = {"model": str(model), "max_new_tokens": tokens, "threads": THREADS}
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(private_services(folder))
        environment = inherited_environment() | services.environment | own
        supervisor = await stack.enter_async_context(open_supervisor(["consult"], environment, lambda *_: None))
        gateway = await stack.enter_async_context(start_process(["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready"))
        server = await stack.enter_async_context(start_process(["benchmarks.inline_server", json.dumps(inline)], environment))
        await supervisor.wait_until_ready(timeout_seconds=90)
        yield {"gateway": gateway.port, "inline": server.port}


async def run_clients(port: int, clients: int, requests: int) -> RoundTimes:
    """`clients` that send one request after another, `requests` in all, while `/health` is polled."""
    times, remaining = RoundTimes(), requests
    polling = asyncio.create_task(poll_health(port, times.health_seconds))
    began = time.perf_counter()

    async def client() -> None:
        nonlocal remaining
        with closing(HttpConnection(port)) as connection:
            while remaining > 0:
                remaining -= 1
                sent = time.perf_counter()
                status, response = await connection.request("POST", "/predict", REQUEST_BODY)
                assert status == 200, response
                times.request_seconds.append(time.perf_counter() - sent)

    await asyncio.gather(*(client() for _ in range(clients)))
    times.total_seconds = time.perf_counter() - began
    polling.cancel()
    await asyncio.wait({polling})
    await asyncio.sleep(0)  # let the connections close
    return times


async def poll_health(port: int, latencies: list[float]) -> None:
    """A poll without a response counts, too, with the time that it has waited so far."""
    with closing(HttpConnection(port)) as connection:
        while True:
            sent = time.perf_counter()
            try:
                await connection.request("GET", "/health")
            finally:
                latencies.append(time.perf_counter() - sent)
            await asyncio.sleep(HEALTH_POLL_SECONDS)


def image_base64() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


REQUEST_BODY = {"instances": [{"prompt": "What is to be seen?", "image": image_base64()}]}


def summarize(rounds: Mapping[int, Mapping[str, Sequence[RoundTimes]]]) -> dict[str, Any]:
    """Medians of the rounds. `over_inline`: requests per second through the gateway divided by the inline server's, round by round."""
    return {
        "clients": {str(clients): {side: summarize_rounds(times) for side, times in sides.items()} for clients, sides in rounds.items()},
        "over_inline": {
            str(clients): median_ratio(*([times.total_seconds for times in sides[side]] for side in ("inline", "gateway")))
            for clients, sides in rounds.items()
        },
    }


def summarize_rounds(rounds: Sequence[RoundTimes]) -> dict[str, float]:
    return {
        "per_second": round(median(len(times.request_seconds) / times.total_seconds for times in rounds), 2),
        **percentiles_ms([seconds for times in rounds for seconds in times.request_seconds]),
        "health_worst_ms": round(max(seconds for times in rounds for seconds in times.health_seconds) * 1000),
    }


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'clients':>8} {'side':>8} {'requests/s':>12} {'p50 ms':>8} {'p99 ms':>8} {'worst /health ms':>17}"]
    for clients, sides in figures["clients"].items():
        for side, values in sides.items():
            lines.append(
                f"{clients:>8} {side:>8} {values['per_second']:>12} {values['p50_ms']:>8} {values['p99_ms']:>8}"
                f" {values['health_worst_ms']:>17}"
            )
    lines.append(f"requests per second over the inline server: {figures['over_inline']}")
    return "\n".join(lines)
