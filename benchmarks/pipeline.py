"""`atelier bench pipeline`: image orders a second over the bus, the source system's inline way, and the same steps without a bus.

The same orders, the same tiny model, one thread for it each time; the backend answers each webhook after some milliseconds, as one
over a network does. The sides take turns; a figure is the median of the rounds.
"""

import asyncio
import itertools
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.processes import start_process
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher, open_publisher
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from ops.commands.demo import PROCESSES, make_tiny_models_in_subprocess
from ops.commands.demo_backend import FakeBackend, image_order_message, open_fake_backend
from ops.local.stack import ServiceUrls, local_stack
from ops.settings import LocalSettings, inherited_environment
from ops.supervisor import open_supervisor

THREADS = max(1, (os.cpu_count() or 2) - 1)
INLINE_QUEUE = "image_generation_inline"
SIDES = ("bus", "inline", "unbussed")

SendOrder = Callable[[OutboundMessage], Awaitable[None]]


@dataclass(frozen=True)
class PipelineVariant:
    """How an order is given to it, and the process in which its model computes."""

    send: SendOrder
    model_process: psutil.Process

    async def measure_throughput(self, messages: list[OutboundMessage], backend: FakeBackend) -> tuple[float, float]:
        """From the first order to the last one's last webhook; and the model process's share of one core in that time."""
        told, busy, began = count_completed(backend), process_cpu_seconds(self.model_process), time.perf_counter()
        for letter in messages:
            await self.send(letter)
        while count_completed(backend) < told + len(messages):  # noqa: ASYNC110 # a fact of another process
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - began
        return len(messages) / seconds, (process_cpu_seconds(self.model_process) - busy) / seconds / THREADS


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    told = asyncio.run(measure(arguments))
    sys.stdout.write((json.dumps(told) if arguments.json else format_text(told)) + "\n")
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    """Waits for ever for a lost order: whoever calls sets the limit."""
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
        async with local_stack(parts) as stack, open_fake_backend(arguments.webhook_ms / 1000) as backend:
            made = await make_tiny_models_in_subprocess(arguments.models or folder / "models")
            environment = inherited_environment() | stack.environment | worker_environment(backend, made["tiny-sd"], folder)
            async with open_variants(stack, backend, environment) as sides:
                return await measure_alternating(sides, backend, arguments)


def worker_environment(backend: FakeBackend, model: Path, folder: Path) -> dict[str, str]:
    own = {"IMAGE_MODEL": str(model), "IMAGE_THREADS": str(THREADS), "IMAGE_LOCAL_CACHE": str(folder / "cache")}
    return own | {"BACKEND_API_URL": backend.url, "INTERNAL_API_TOKEN": "bench"}


@asynccontextmanager
async def open_variants(
    stack: ServiceUrls, backend: FakeBackend, environment: Mapping[str, str]
) -> AsyncIterator[dict[str, PipelineVariant]]:
    inline = {"amqp_url": stack.amqp_url, "backend_url": backend.url, "model": environment["IMAGE_MODEL"], "threads": THREADS}
    inline["store"] = str(Path(environment["IMAGE_LOCAL_CACHE"]).parent)
    async with AsyncExitStack() as opened:
        outbox = await opened.enter_async_context(open_publisher(BusSettings.model_validate({"amqp_url": stack.amqp_url})))
        crew = await opened.enter_async_context(open_supervisor(PROCESSES, environment, lambda *_: None))
        one = await opened.enter_async_context(start_process(["benchmarks.inline_worker", json.dumps(inline)], environment))
        calls = await opened.enter_async_context(start_process(["benchmarks.in_process_pipeline"], environment))
        await crew.wait_until_ready(timeout_seconds=90)
        image = next(member.process for member in crew.children if member.step == "image")
        assert image is not None
        yield {
            "bus": PipelineVariant(outbox.publish, await busiest_child(image.pid)),
            "inline": PipelineVariant(queue_sender(outbox, INLINE_QUEUE), psutil.Process(one.process.pid)),
            "unbussed": PipelineVariant(stdin_sender(calls.process), await busiest_child(calls.process.pid)),
        }


def queue_sender(outbox: Publisher, queue: str) -> SendOrder:
    async def send(letter: OutboundMessage) -> None:
        await outbox.publish(OutboundMessage("", queue, letter.body, letter.message_id, letter.job_id, letter.type))

    return send


def stdin_sender(process: asyncio.subprocess.Process) -> SendOrder:
    async def send(letter: OutboundMessage) -> None:
        assert process.stdin is not None
        process.stdin.write(letter.body + b"\n")

    return send


async def busiest_child(pid: int) -> psutil.Process:
    """The model process of an actor: no other child computes."""
    while not (children := psutil.Process(pid).children()):  # noqa: ASYNC110 # a fact of another process
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
    for number in range(arguments.rounds):
        for name in SIDES[:: 1 if number % 2 == 0 else -1]:
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

    def ratio(over: str, under: str) -> float:
        return median(a / b for a, b in zip(rates[over], rates[under], strict=True))

    return {
        "orders_per_second": {name: round(median(seen), 3) for name, seen in rates.items()},
        "device_busy": {name: round(median(seen), 3) for name, seen in busy.items()},
        "over_inline": round(ratio("bus", "inline"), 3),
        "bus_share_of_work": round(max(0.0, 1 - ratio("bus", "unbussed")), 3),
    }


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"{'side':>10} {'orders/s':>10} {'device busy':>12}"]
    lines += [f"{name:>10} {rate:>10} {figures['device_busy'][name]:>12}" for name, rate in figures["orders_per_second"].items()]
    lines.append(
        f"the bus draws {figures['over_inline']} times as many as the inline loop; the bus takes {figures['bus_share_of_work']:.1%} of the work"
    )
    return "\n".join(lines)
