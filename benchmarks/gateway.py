"""`atelier bench gateway`: requests and their replies through the gateway, through the bus client, bare aio-pika and FastStream.

All in one run, on a private broker, against one responder. Then a load run: many clients wait at once for slow replies.
"""

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.request_clients import HttpConnection, SendRequest, open_aio_pika, open_bus, open_faststream
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from ops.local.stack import local_stack
from ops.settings import LocalSettings, inherited_environment

SIDES = ("aio_pika", "bus", "http", "faststream_request")
QUERY = {"job_id": "bench"}
ORDER = {"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "how long?"}}]}
FASTSTREAM_SECONDS = 20.0
"""How long FastStream is watched in the load run: to the end it would take over half an hour."""


@dataclass(frozen=True)
class LoadRound:
    """How long it went on, and the seconds that each request took."""

    seconds: float
    request_seconds: Sequence[float]

    @property
    def rate(self) -> float:
        return len(self.request_seconds) / self.seconds


def bench(arguments: Namespace) -> int:
    configure_logging("WARNING")
    told = asyncio.run(measure(arguments))
    sys.stdout.write((json.dumps(told) if arguments.json else format_text(told)) + "\n")
    return 0 if not arguments.waiting or told["waiting"]["replied"] == arguments.waiting else 1


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=Path(folder))
        async with local_stack(parts) as stack:
            settings = BusSettings.model_validate({"amqp_url": stack.amqp_url, "publish_timeout_seconds": 60.0})
            environment = inherited_environment() | {
                "AMQP_URL": stack.amqp_url,
                "GATEWAY_RATE_REQUESTS": "0",
                "GATEWAY_QUESTION_SECONDS": "60",
            }
            environment |= {"PUBLISH_TIMEOUT_SECONDS": "60"}
            async with (
                start_process(["-m", "benchmarks.responder"], environment, "responder.ready"),
                start_process(["-m", "ops.cli", "gateway", "--port", "0"], environment, "gateway.ready") as (gateway, line),
            ):
                port = int(json.loads(line)["url"].rpartition(":")[2])
                speeds = {count: await measure_alternating(count, arguments, settings, port) for count in arguments.callers}
                waiting = (
                    await measure_waiting_clients(arguments.waiting, settings, port, psutil.Process(gateway.pid))
                    if arguments.waiting
                    else None
                )
    return summarize(speeds) | ({"waiting": waiting} if waiting else {})


@asynccontextmanager
async def start_process(
    words: Sequence[str], environment: Mapping[str, str], ready: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, bytes]]:
    """A process of ours, once it has said that it is ready, and the line in which it said so."""
    child = await asyncio.create_subprocess_exec(sys.executable, *words, env=dict(environment), stderr=asyncio.subprocess.PIPE)
    assert child.stderr is not None
    drain = None
    try:
        async with asyncio.timeout(60):
            while ready.encode() not in (line := await child.stderr.readline()):
                if not line:
                    raise RuntimeError(f"{words} ended before it was ready")
        drain = asyncio.create_task(drain_stream(child.stderr))
        yield child, line
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()
        if drain:
            await drain


async def drain_stream(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass


async def measure_alternating(callers: int, arguments: Namespace, settings: BusSettings, port: int) -> dict[str, list[LoadRound]]:
    """The rounds of each side. The sides take turns, so that a busy moment of the machine meets all of them."""
    rounds: dict[str, list[LoadRound]] = {side: [] for side in SIDES}
    async with AsyncExitStack() as stack:
        asks = {
            "aio_pika": [await stack.enter_async_context(open_aio_pika(settings))] * callers,
            "bus": [await stack.enter_async_context(open_bus(settings))] * callers,
            "http": [http_client(stack, port) for _ in range(callers)],
            "faststream_request": [await stack.enter_async_context(open_faststream(settings))] * callers,
        }
        for number in range(arguments.rounds):
            for side in SIDES[:: 1 if number % 2 else -1]:
                await asyncio.gather(*(ask("job.get", QUERY) for ask in asks[side]))  # warm, and every connection open
                rounds[side].append(await run_for(arguments.seconds / arguments.rounds, asks[side]))
    return rounds


def http_client(stack: AsyncExitStack, port: int) -> SendRequest:
    connection = HttpConnection(port)
    stack.callback(connection.close)

    async def ask(step: str, body: dict[str, Any]) -> Any:
        status, answer = await connection.request("GET", f"/jobs/{body['job_id']}")
        assert status == 200, answer
        return json.loads(answer)

    return ask


async def run_for(seconds: float, clients: Sequence[SendRequest]) -> LoadRound:
    """Every caller asks again as soon as it is answered."""
    taken: list[float] = []
    start = time.perf_counter()

    async def call(ask: SendRequest) -> None:
        while (begun := time.perf_counter()) < start + seconds:
            await ask("job.get", QUERY)
            taken.append(time.perf_counter() - begun)

    await asyncio.gather(*(call(ask) for ask in clients))
    return LoadRound(time.perf_counter() - start, taken)


async def measure_waiting_clients(clients: int, settings: BusSettings, port: int, gateway: psutil.Process) -> dict[str, Any]:
    """So many clients at once, each with a job that takes two seconds. Beside it the same by FastStream's `request()`, for a while."""
    before, threads, begun = gateway.memory_info().rss, gateway.num_threads(), time.perf_counter()
    connections = [HttpConnection(port) for _ in range(clients)]
    calls = [asyncio.create_task(connection.request("POST", "/jobs?wait=60", ORDER)) for connection in connections]
    await asyncio.sleep(2.0)
    during_it = gateway.memory_info().rss
    statuses = [status for status, _ in await asyncio.gather(*calls)]
    seconds = time.perf_counter() - begun
    for connection in connections:
        connection.close()
    return {
        "clients": clients,
        "replied": statuses.count(200),
        "seconds": round(seconds, 2),
        "gateway_more_mb": round((during_it - before) / 1e6, 1),
        "gateway_more_threads": gateway.num_threads() - threads,
        "faststream_replied": await count_faststream_replies(clients, settings),
        "faststream_seconds": FASTSTREAM_SECONDS,
    }


async def count_faststream_replies(clients: int, settings: BusSettings) -> int:
    async with open_faststream(settings) as ask:
        calls = [asyncio.create_task(ask("consult", {"prompt": "how long?"})) for _ in range(clients)]
        done, left = await asyncio.wait(calls, timeout=FASTSTREAM_SECONDS)
        for call in left:
            call.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    return len(done)


def summarize(speeds: Mapping[int, Mapping[str, Sequence[LoadRound]]]) -> dict[str, Any]:
    """Shares are medians of the rounds' own ratios of requests a second."""

    def share(side: str, of: str) -> dict[str, float]:
        return {
            str(count): round(median(ours.rate / theirs.rate for ours, theirs in zip(rounds[side], rounds[of], strict=True)), 3)
            for count, rounds in speeds.items()
        }

    return {
        "bus_share_of_aio_pika": share("bus", "aio_pika"),
        "http_share_of_aio_pika": share("http", "aio_pika"),
        "over_faststream_request": share("http", "faststream_request"),
        "bus_over_faststream_request": share("bus", "faststream_request"),
        "sides": {side: {str(count): summarize_rounds(rounds[side]) for count, rounds in speeds.items()} for side in SIDES},
    }


def summarize_rounds(rounds: Sequence[LoadRound]) -> dict[str, float]:
    rates = [each.rate for each in rounds]
    spread = {"least": round(min(rates), 1), "most": round(max(rates), 1)}
    return {
        "per_second": round(median(rates), 1),
        **spread,
        **percentiles([seconds for each in rounds for seconds in each.request_seconds]),
    }


def percentiles(times: Sequence[float]) -> dict[str, float]:
    cuts = quantiles(times, n=100) if len(times) > 1 else [*times] * 99
    return {"p50_ms": round(cuts[49] * 1000, 2), "p99_ms": round(cuts[98] * 1000, 2)}


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'callers':>20} {'requests/s':>12} {'p50 ms':>9} {'p99 ms':>9}"]
    for side, counts in figures["sides"].items():
        for count, said in counts.items():
            lines.append(f"{side:>16}{count:>4} {said['per_second']:>12} {said['p50_ms']:>9} {said['p99_ms']:>9}")
    lines += [f"{name}: {figures[name]}" for name in figures if name != "sides"]
    return "\n".join(lines)
