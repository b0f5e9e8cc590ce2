"""`atelier bench gateway`: requests and replies through the gateway, the bus client, bare aio-pika and FastStream.

All in one run, on a private broker, with one responder; each client in a process of its own. Then a load run: many clients wait at once
for slow replies.
"""

import asyncio
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.harness import alternate, median_ratio, percentiles_ms, print_figures, private_services
from benchmarks.processes import start_logged_process, start_process
from benchmarks.request_clients import REQUEST_TIMEOUT_SECONDS, ClientConfig
from benchmarks.request_processes import LoadRound, RequestProcess, open_request_process
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from ops.settings import inherited_environment

SIDES = ("aio_pika", "bus", "http", "faststream_request")
QUERY = {"job_id": "bench"}
SLOW_COMMAND = {"prompt": "how long?"}
FASTSTREAM_SECONDS = 20.0
"""Time limit for FastStream in the load run: all replies would take over half an hour."""


@dataclass(frozen=True)
class MeasuredRound:
    """A round, and the processor time of each server process meanwhile, in seconds."""

    load: LoadRound
    server_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def cpu_us(self) -> dict[str, float]:
        """Microseconds of processor time a request: the client's own, and those of each server process."""
        count = max(1, len(self.load.request_seconds))
        return {name: seconds / count * 1e6 for name, seconds in {"client": self.load.cpu_seconds, **self.server_seconds}.items()}


@dataclass(frozen=True)
class Servers:
    """`processes`: the gateway, the responder and the broker."""

    amqp_url: str
    port: int
    processes: Mapping[str, psutil.Process]
    environment: Mapping[str, str]

    def client(self, side: str, callers: int) -> Any:
        return open_request_process(side, ClientConfig(self.amqp_url, self.port, callers), dict(self.environment))

    def cpu_seconds(self) -> dict[str, float]:
        return {name: sum(process.cpu_times()[:2]) for name, process in self.processes.items()}


def bench(arguments: Namespace) -> int:
    """Returns 1 when a waiting client had no reply."""
    configure_logging("WARNING")
    figures = asyncio.run(measure(arguments))
    print_figures(figures, as_json=arguments.json, format_text=format_text)
    return 0 if not arguments.waiting or figures["waiting"]["replied"] == arguments.waiting else 1


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        async with private_services(Path(folder)) as services:
            environment = inherited_environment() | {
                "AMQP_URL": services.amqp_url,
                "GATEWAY_RATE_REQUESTS": "0",
                "GATEWAY_QUESTION_SECONDS": "60",
                "PUBLISH_TIMEOUT_SECONDS": "60",
            }
            async with (
                start_process(["benchmarks.responder"], environment, "responder.ready") as responder,
                start_logged_process(
                    ["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready", Path(folder) / "gateway.log"
                ) as gateway,
            ):
                processes = {"gateway": psutil.Process(gateway.process.pid), "responder": psutil.Process(responder.process.pid)}
                processes["broker"] = broker_process(folder)
                amqp_url = BusSettings.model_validate(
                    {"amqp_url": services.amqp_url}
                ).broker_url  # with the heartbeat that the bus asks for
                servers = Servers(amqp_url, gateway.port, processes, environment)
                speeds = {count: await measure_alternating(count, arguments, servers) for count in arguments.callers}
                waiting = await measure_waiting_clients(arguments.waiting, servers) if arguments.waiting else None
    return summarize(speeds) | ({"waiting": waiting} if waiting else {})


def broker_process(folder: str) -> psutil.Process:
    """The private node whose data are in `folder`."""
    nodes = [process for process in psutil.process_iter(["name", "cmdline"]) if process.info["name"] == "beam.smp"]
    return next(node for node in nodes if folder in " ".join(node.info["cmdline"] or ()))


async def measure_alternating(callers: int, arguments: Namespace, servers: Servers) -> dict[str, list[MeasuredRound]]:
    """The rounds of each side."""
    rounds: dict[str, list[MeasuredRound]] = {side: [] for side in SIDES}
    async with AsyncExitStack() as stack:
        clients: dict[str, RequestProcess] = {side: await stack.enter_async_context(servers.client(side, callers)) for side in SIDES}
        for side in alternate(SIDES, arguments.rounds):
            await clients[side].run_once("job.get", QUERY, within=REQUEST_TIMEOUT_SECONDS)  # warm up and open every connection
            before = servers.cpu_seconds()
            load = await clients[side].run("job.get", QUERY, seconds=arguments.seconds / arguments.rounds)
            rounds[side].append(MeasuredRound(load, {name: value - before[name] for name, value in servers.cpu_seconds().items()}))
    return rounds


async def measure_waiting_clients(clients: int, servers: Servers) -> dict[str, Any]:
    """`clients` at once, each waiting for a job of two seconds; then the same with FastStream's `request()`, within a time limit."""
    gateway = servers.processes["gateway"]
    async with servers.client("http", clients) as http:
        memory, threads = gateway.memory_info().rss, gateway.num_threads()
        load_run = asyncio.create_task(http.run_once("consult", SLOW_COMMAND, within=120.0))
        await asyncio.sleep(2.0)
        memory_under_load = gateway.memory_info().rss
        load = await load_run
        more_threads = gateway.num_threads() - threads
    async with servers.client("faststream_request", clients) as faststream:
        faststream_load = await faststream.run_once("consult", SLOW_COMMAND, within=FASTSTREAM_SECONDS)
    return {
        "clients": clients,
        "replied": len(load.request_seconds),
        "seconds": round(load.seconds, 2),
        "gateway_more_mb": round((memory_under_load - memory) / 1e6, 1),
        "gateway_more_threads": more_threads,
        "faststream_replied": len(faststream_load.request_seconds),
        "faststream_seconds": FASTSTREAM_SECONDS,
    }


def summarize(speeds: Mapping[int, Mapping[str, Sequence[MeasuredRound]]]) -> dict[str, Any]:
    """Shares are medians of the rounds' own ratios of requests per second.

    `gateway_share_of_cpu`: of the processor time of all processes that serve an HTTP request, the gateway's own.
    """

    def share(side: str, baseline: str) -> dict[str, float]:
        return {str(count): median_ratio(rates(rounds[side]), rates(rounds[baseline])) for count, rounds in speeds.items()}

    return {
        "bus_share_of_aio_pika": share("bus", "aio_pika"),
        "http_share_of_aio_pika": share("http", "aio_pika"),
        "over_faststream_request": share("http", "faststream_request"),
        "bus_over_faststream_request": share("bus", "faststream_request"),
        "gateway_share_of_cpu": {str(count): gateway_share_of_cpu(rounds["http"]) for count, rounds in speeds.items()},
        "sides": {side: {str(count): summarize_rounds(rounds[side]) for count, rounds in speeds.items()} for side in SIDES},
    }


def rates(rounds: Sequence[MeasuredRound]) -> list[float]:
    return [measured.load.rate for measured in rounds]


def gateway_share_of_cpu(rounds: Sequence[MeasuredRound]) -> float:
    shares = [spent["gateway"] / sum(spent.values()) for measured in rounds if (spent := measured.cpu_us).get("gateway")]
    return round(median(shares), 3) if shares else 0.0


def summarize_rounds(rounds: Sequence[MeasuredRound]) -> dict[str, Any]:
    """`cpu_us`: microseconds of processor time a request, of each process; a server's own for the other sides, too."""
    per_second = rates(rounds)
    return {
        "per_second": round(median(per_second), 1),
        "least": round(min(per_second), 1),
        "most": round(max(per_second), 1),
        **percentiles_ms([seconds for measured in rounds for seconds in measured.load.request_seconds], 2),
        "cpu_us": {name: round(median(measured.cpu_us[name] for measured in rounds)) for name in rounds[0].cpu_us},
    }


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'callers':>22} {'requests/s':>12} {'p50 ms':>9} {'p99 ms':>9}  processor time a request, µs"]
    for side, counts in figures["sides"].items():
        for count, values in counts.items():
            spent = ", ".join(f"{name} {microseconds}" for name, microseconds in values["cpu_us"].items())
            lines.append(f"{side:>18}{count:>4} {values['per_second']:>12} {values['p50_ms']:>9} {values['p99_ms']:>9}  {spent}")
    lines += [f"{name}: {figures[name]}" for name in figures if name != "sides"]
    return "\n".join(lines)
