"""`atelier bench gateway`: requests and replies through the gateway, the bus client, bare aio-pika and FastStream.

All in one run, on a private broker, with one responder. Then a load run: many clients wait at once for slow replies.
"""

import asyncio
import json
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.harness import alternate, median_ratio, percentiles_ms, print_figures, private_services
from benchmarks.processes import start_process
from benchmarks.request_clients import HttpConnection, SendRequest, open_aio_pika, open_bus, open_faststream
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from ops.settings import inherited_environment

SIDES = ("aio_pika", "bus", "http", "faststream_request")
QUERY = {"job_id": "bench"}
ORDER = {"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "how long?"}}]}
FASTSTREAM_SECONDS = 20.0
"""Time limit for FastStream in the load run: all replies would take over half an hour."""


@dataclass(frozen=True)
class LoadRound:
    """The duration of a round, and of each of its requests, in seconds."""

    seconds: float
    request_seconds: Sequence[float]

    @property
    def rate(self) -> float:
        return len(self.request_seconds) / self.seconds


def bench(arguments: Namespace) -> int:
    """Returns 1 when a waiting client had no reply."""
    configure_logging("WARNING")
    figures = asyncio.run(measure(arguments))
    print_figures(figures, as_json=arguments.json, format_text=format_text)
    return 0 if not arguments.waiting or figures["waiting"]["replied"] == arguments.waiting else 1


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        async with private_services(Path(folder)) as services:
            settings = BusSettings.model_validate({"amqp_url": services.amqp_url, "publish_timeout_seconds": 60.0})
            environment = inherited_environment() | {
                "AMQP_URL": services.amqp_url,
                "GATEWAY_RATE_REQUESTS": "0",
                "GATEWAY_QUESTION_SECONDS": "60",
                "PUBLISH_TIMEOUT_SECONDS": "60",
            }
            async with (
                start_process(["benchmarks.responder"], environment, "responder.ready"),
                start_process(["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready") as gateway,
            ):
                speeds = {count: await measure_alternating(count, arguments, settings, gateway.port) for count in arguments.callers}
                waiting = (
                    await measure_waiting_clients(arguments.waiting, settings, gateway.port, psutil.Process(gateway.process.pid))
                    if arguments.waiting
                    else None
                )
    return summarize(speeds) | ({"waiting": waiting} if waiting else {})


async def measure_alternating(callers: int, arguments: Namespace, settings: BusSettings, port: int) -> dict[str, list[LoadRound]]:
    """The rounds of each side."""
    rounds: dict[str, list[LoadRound]] = {side: [] for side in SIDES}
    async with AsyncExitStack() as stack:
        clients = {
            "aio_pika": [await stack.enter_async_context(open_aio_pika(settings))] * callers,
            "bus": [await stack.enter_async_context(open_bus(settings))] * callers,
            "http": [http_client(stack, port) for _ in range(callers)],
            "faststream_request": [await stack.enter_async_context(open_faststream(settings))] * callers,
        }
        for side in alternate(SIDES, arguments.rounds):
            await asyncio.gather(*(request("job.get", QUERY) for request in clients[side]))  # warm up and open every connection
            rounds[side].append(await run_for(arguments.seconds / arguments.rounds, clients[side]))
    return rounds


def http_client(stack: AsyncExitStack, port: int) -> SendRequest:
    connection = HttpConnection(port)
    stack.callback(connection.close)

    async def request(step: str, body: dict[str, Any]) -> Any:
        status, response = await connection.request("GET", f"/jobs/{body['job_id']}")
        assert status == 200, response
        return json.loads(response)

    return request


async def run_for(seconds: float, clients: Sequence[SendRequest]) -> LoadRound:
    """Every client sends its next request as soon as it has the reply."""
    durations: list[float] = []
    start = time.perf_counter()

    async def send_repeatedly(request: SendRequest) -> None:
        while (began := time.perf_counter()) < start + seconds:
            await request("job.get", QUERY)
            durations.append(time.perf_counter() - began)

    await asyncio.gather(*(send_repeatedly(request) for request in clients))
    return LoadRound(time.perf_counter() - start, durations)


async def measure_waiting_clients(clients: int, settings: BusSettings, port: int, gateway: psutil.Process) -> dict[str, Any]:
    """`clients` at once, each waiting for a job of two seconds; then the same with FastStream's `request()`, within a time limit."""
    memory, threads, began = gateway.memory_info().rss, gateway.num_threads(), time.perf_counter()
    connections = [HttpConnection(port) for _ in range(clients)]
    calls = [asyncio.create_task(connection.request("POST", "/jobs?wait=60", ORDER)) for connection in connections]
    await asyncio.sleep(2.0)
    memory_under_load = gateway.memory_info().rss
    statuses = [status for status, _ in await asyncio.gather(*calls)]
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return {
        "clients": clients,
        "replied": statuses.count(200),
        "seconds": round(seconds, 2),
        "gateway_more_mb": round((memory_under_load - memory) / 1e6, 1),
        "gateway_more_threads": gateway.num_threads() - threads,
        "faststream_replied": await count_faststream_replies(clients, settings),
        "faststream_seconds": FASTSTREAM_SECONDS,
    }


async def count_faststream_replies(clients: int, settings: BusSettings) -> int:
    async with open_faststream(settings) as request:
        calls = [asyncio.create_task(request("consult", {"prompt": "how long?"})) for _ in range(clients)]
        done, pending = await asyncio.wait(calls, timeout=FASTSTREAM_SECONDS)
        for call in pending:
            call.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return len(done)


def summarize(speeds: Mapping[int, Mapping[str, Sequence[LoadRound]]]) -> dict[str, Any]:
    """Shares are medians of the rounds' own ratios of requests per second."""

    def share(side: str, baseline: str) -> dict[str, float]:
        return {str(count): median_ratio(rates(rounds[side]), rates(rounds[baseline])) for count, rounds in speeds.items()}

    return {
        "bus_share_of_aio_pika": share("bus", "aio_pika"),
        "http_share_of_aio_pika": share("http", "aio_pika"),
        "over_faststream_request": share("http", "faststream_request"),
        "bus_over_faststream_request": share("bus", "faststream_request"),
        "sides": {side: {str(count): summarize_rounds(rounds[side]) for count, rounds in speeds.items()} for side in SIDES},
    }


def rates(rounds: Sequence[LoadRound]) -> list[float]:
    return [load.rate for load in rounds]


def summarize_rounds(rounds: Sequence[LoadRound]) -> dict[str, float]:
    per_second = rates(rounds)
    return {
        "per_second": round(median(per_second), 1),
        "least": round(min(per_second), 1),
        "most": round(max(per_second), 1),
        **percentiles_ms([seconds for load in rounds for seconds in load.request_seconds], 2),
    }


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'callers':>20} {'requests/s':>12} {'p50 ms':>9} {'p99 ms':>9}"]
    for side, counts in figures["sides"].items():
        for count, values in counts.items():
            lines.append(f"{side:>16}{count:>4} {values['per_second']:>12} {values['p50_ms']:>9} {values['p99_ms']:>9}")
    lines += [f"{name}: {figures[name]}" for name in figures if name != "sides"]
    return "\n".join(lines)
