"""`atelier bench pipeline`: image orders per second over the bus, in the source system's inline worker, and in one process without a bus.

The same orders and the same tiny model with one thread on every side; the backend answers each webhook after some milliseconds, as over
a network. The sides take turns; a figure is the median of the rounds.
"""

import asyncio
import itertools
import json
import os
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.harness import alternate, make_tiny_models_in_subprocess, median_ratio, print_figures, private_services
from benchmarks.processes import start_process
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher, open_publisher
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from ops.commands.demo import PROCESSES
from ops.commands.demo_backend import FakeBackend, image_order_message, open_fake_backend
from ops.local.stack import ServiceUrls
from ops.settings import inherited_environment
from ops.supervisor import open_supervisor

THREADS = max(1, (os.cpu_count() or 2) - 1)
INLINE_QUEUE = "image_generation_inline"
SIDES = ("bus", "inline", "unbussed")

SendOrder = Callable[[OutboundMessage], Awaitable[None]]


@dataclass(frozen=True)
class PipelineVariant:
    """How an order is sent to it, and the process in which its model computes."""

    send: SendOrder
    model_process: psutil.Process

    async def measure_throughput(self, messages: list[OutboundMessage], backend: FakeBackend) -> tuple[float, float]:
        """Orders per second, from the first order to the last webhook; and the share of that time in which the model process was busy."""
        completed, cpu, began = count_completed(backend), process_cpu_seconds(self.model_process), time.perf_counter()
        for message in messages:
            await self.send(message)
        while count_completed(backend) < completed + len(messages):  # noqa: ASYNC110 # another process completes them
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - began
        return len(messages) / seconds, (process_cpu_seconds(self.model_process) - cpu) / seconds / THREADS


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    print_figures(asyncio.run(measure(arguments)), as_json=arguments.json, format_text=format_text)
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    """Has no time limit: it would wait for ever for a lost order."""
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        async with private_services(folder) as services, open_fake_backend(arguments.webhook_ms / 1000) as backend:
            models = await make_tiny_models_in_subprocess(arguments.models or folder / "models")
            environment = inherited_environment() | services.environment | worker_environment(backend, models["tiny-sd"], folder)
            async with open_variants(services, backend, environment) as variants:
                return await measure_alternating(variants, backend, arguments)


def worker_environment(backend: FakeBackend, model: Path, folder: Path) -> dict[str, str]:
    own = {"IMAGE_MODEL": str(model), "IMAGE_THREADS": str(THREADS), "IMAGE_LOCAL_CACHE": str(folder / "cache")}
    return own | {"BACKEND_API_URL": backend.url, "INTERNAL_API_TOKEN": "bench" * 8}


@asynccontextmanager
async def open_variants(
    services: ServiceUrls, backend: FakeBackend, environment: Mapping[str, str]
) -> AsyncIterator[dict[str, PipelineVariant]]:
    inline = {"amqp_url": services.amqp_url, "backend_url": backend.url, "model": environment["IMAGE_MODEL"], "threads": THREADS}
    inline["store"] = str(Path(environment["IMAGE_LOCAL_CACHE"]).parent)
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(open_publisher(BusSettings.model_validate({"amqp_url": services.amqp_url})))
        supervisor = await stack.enter_async_context(open_supervisor(PROCESSES, environment, lambda *_: None))
        inline_worker = await stack.enter_async_context(start_process(["benchmarks.inline_worker", json.dumps(inline)], environment))
        in_process = await stack.enter_async_context(start_process(["benchmarks.in_process_pipeline"], environment))
        await supervisor.wait_until_ready(timeout_seconds=90)
        image = next(child.process for child in supervisor.children if child.step == "image")
        assert image is not None
        yield {
            "bus": PipelineVariant(publisher.publish, await busiest_child(image.pid)),
            "inline": PipelineVariant(queue_sender(publisher, INLINE_QUEUE), psutil.Process(inline_worker.process.pid)),
            "unbussed": PipelineVariant(stdin_sender(in_process.process), await busiest_child(in_process.process.pid)),
        }


def queue_sender(publisher: Publisher, queue: str) -> SendOrder:
    async def send(message: OutboundMessage) -> None:
        await publisher.publish(replace(message, exchange="", routing_key=queue))

    return send


def stdin_sender(process: asyncio.subprocess.Process) -> SendOrder:
    async def send(message: OutboundMessage) -> None:
        assert process.stdin is not None
        process.stdin.write(message.body + b"\n")

    return send


async def busiest_child(pid: int) -> psutil.Process:
    """The model process of a worker: no other child computes."""
    while not (children := psutil.Process(pid).children()):  # noqa: ASYNC110 # another process starts them
        await asyncio.sleep(0.1)
    return max(children, key=process_cpu_seconds)


def process_cpu_seconds(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def count_completed(backend: FakeBackend) -> int:
    return sum(call["path"].endswith("/complete") for call in backend.calls)


async def measure_alternating(variants: Mapping[str, PipelineVariant], backend: FakeBackend, arguments: Namespace) -> dict[str, Any]:
    numbers = itertools.count(1)
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    busy: dict[str, list[float]] = {name: [] for name in SIDES}
    for name in SIDES:
        await variants[name].measure_throughput(order_messages(2, numbers, arguments), backend)
    for name in alternate(SIDES, arguments.rounds):
        rate, share = await variants[name].measure_throughput(order_messages(arguments.orders, numbers, arguments), backend)
        rates[name].append(rate)
        busy[name].append(share)
    return summarize(rates, busy)


def order_messages(count: int, numbers: "itertools.count[int]", arguments: Namespace) -> list[OutboundMessage]:
    size = {"width": arguments.pixels, "height": arguments.pixels}
    data = {"prompt": "a red fox in fresh snow", "artist_name": "A", "num_inference_steps": arguments.steps, "parameters": size}
    return [image_order_message(next(numbers), data) for _ in range(count)]


def summarize(rates: Mapping[str, list[float]], busy: Mapping[str, list[float]]) -> dict[str, Any]:
    """Shares and speed-ups are medians of the rounds' own ratios."""
    return {
        "orders_per_second": {name: round(median(values), 3) for name, values in rates.items()},
        "device_busy": {name: round(median(values), 3) for name, values in busy.items()},
        "over_inline": median_ratio(rates["bus"], rates["inline"]),
        "bus_share_of_work": round(max(0.0, 1 - median_ratio(rates["bus"], rates["unbussed"])), 3),
    }


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'side':>10} {'orders/s':>10} {'device busy':>12}"]
    lines += [f"{name:>10} {rate:>10} {figures['device_busy'][name]:>12}" for name, rate in figures["orders_per_second"].items()]
    lines.append(f"orders per second over the bus, as a multiple of the inline worker's: {figures['over_inline']}")
    lines.append(f"share of the work that the bus costs: {figures['bus_share_of_work']:.1%}")
    return "\n".join(lines)
