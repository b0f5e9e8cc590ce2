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

from bus.letters import Letter
from bus.logs import open_logs
from bus.outbox import Outbox, open_outbox
from bus.settings import BusSettings
from ops.backend import Backend, open_backend, order_letter
from ops.bench.processes import child
from ops.crew import open_crew
from ops.demo import CREW, tiny_models
from ops.local.stack import Addresses, local_stack
from ops.settings import LocalSettings, inherited

THREADS = max(1, (os.cpu_count() or 2) - 1)
INLINE_QUEUE = "image_generation_inline"
SIDES = ("bus", "inline", "unbussed")

Send = Callable[[Letter], Awaitable[None]]


@dataclass(frozen=True)
class Side:
    """How an order is given to it, and the process in which its model computes."""

    send: Send
    model: psutil.Process

    async def orders_a_second(self, letters: list[Letter], backend: Backend) -> tuple[float, float]:
        """From the first order to the last one's last webhook; and the model process's share of one core in that time."""
        told, busy, began = completed(backend), cpu_seconds(self.model), time.perf_counter()
        for letter in letters:
            await self.send(letter)
        while completed(backend) < told + len(letters):  # noqa: ASYNC110 # a fact of another process
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - began
        return len(letters) / seconds, (cpu_seconds(self.model) - busy) / seconds / THREADS


def bench(arguments: Namespace) -> int:
    open_logs("ERROR")
    told = asyncio.run(measured(arguments))
    sys.stdout.write((json.dumps(told) if arguments.json else in_words(told)) + "\n")
    return 0


async def measured(arguments: Namespace) -> dict[str, Any]:
    """Waits for ever for a lost order: whoever calls sets the limit."""
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
        async with local_stack(parts) as stack, open_backend(arguments.webhook_ms / 1000) as backend:
            made = await tiny_models(arguments.models or folder / "models")
            environment = inherited() | stack.environment | surroundings(backend, made["tiny-sd"], folder)
            async with all_sides(stack, backend, environment) as sides:
                return await side_by_side(sides, backend, arguments)


def surroundings(backend: Backend, model: Path, folder: Path) -> dict[str, str]:
    own = {"IMAGE_MODEL": str(model), "IMAGE_THREADS": str(THREADS), "IMAGE_LOCAL_CACHE": str(folder / "cache")}
    return own | {"BACKEND_API_URL": backend.url, "INTERNAL_API_TOKEN": "bench"}


@asynccontextmanager
async def all_sides(stack: Addresses, backend: Backend, environment: Mapping[str, str]) -> AsyncIterator[dict[str, Side]]:
    inline = {"amqp_url": stack.amqp_url, "backend_url": backend.url, "model": environment["IMAGE_MODEL"], "threads": THREADS}
    inline["store"] = str(Path(environment["IMAGE_LOCAL_CACHE"]).parent)
    async with AsyncExitStack() as opened:
        outbox = await opened.enter_async_context(open_outbox(BusSettings.model_validate({"amqp_url": stack.amqp_url})))
        crew = await opened.enter_async_context(open_crew(CREW, environment, lambda *_: None))
        one = await opened.enter_async_context(child(["ops.bench.inline_worker", json.dumps(inline)], environment))
        calls = await opened.enter_async_context(child(["ops.bench.unbussed"], environment))
        await crew.ready(timeout_seconds=90)
        image = next(member.process for member in crew.members if member.step == "image")
        assert image is not None
        yield {
            "bus": Side(outbox.post, await busiest_child(image.pid)),
            "inline": Side(to_queue(outbox, INLINE_QUEUE), psutil.Process(one.process.pid)),
            "unbussed": Side(to_input(calls.process), await busiest_child(calls.process.pid)),
        }


def to_queue(outbox: Outbox, queue: str) -> Send:
    async def send(letter: Letter) -> None:
        await outbox.post(Letter("", queue, letter.body, letter.message_id, letter.job_id, letter.type))

    return send


def to_input(process: asyncio.subprocess.Process) -> Send:
    async def send(letter: Letter) -> None:
        assert process.stdin is not None
        process.stdin.write(letter.body + b"\n")

    return send


async def busiest_child(pid: int) -> psutil.Process:
    """The model process of an actor: no other child computes."""
    while not (children := psutil.Process(pid).children()):  # noqa: ASYNC110 # a fact of another process
        await asyncio.sleep(0.1)
    return max(children, key=cpu_seconds)


def cpu_seconds(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def completed(backend: Backend) -> int:
    return sum(call["path"].endswith("/complete") for call in backend.told)


async def side_by_side(sides: Mapping[str, Side], backend: Backend, arguments: Namespace) -> dict[str, Any]:
    numbers = itertools.count(1)
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    busy: dict[str, list[float]] = {name: [] for name in SIDES}
    for name in SIDES:
        await sides[name].orders_a_second(orders(2, numbers, arguments), backend)
    for number in range(arguments.rounds):
        for name in SIDES[:: 1 if number % 2 == 0 else -1]:
            rate, share = await sides[name].orders_a_second(orders(arguments.orders, numbers, arguments), backend)
            rates[name].append(rate)
            busy[name].append(share)
    return figures(rates, busy)


def orders(count: int, numbers: "itertools.count[int]", arguments: Namespace) -> list[Letter]:
    size = {"width": arguments.pixels, "height": arguments.pixels}
    data = {"prompt": "a red fox in fresh snow", "artist_name": "A", "num_inference_steps": arguments.steps, "parameters": size}
    return [order_letter(next(numbers), data) for _ in range(count)]


def figures(rates: Mapping[str, list[float]], busy: Mapping[str, list[float]]) -> dict[str, Any]:
    """Shares and speed-ups are medians of the rounds' own ratios."""

    def ratio(over: str, under: str) -> float:
        return median(a / b for a, b in zip(rates[over], rates[under], strict=True))

    return {
        "orders_per_second": {name: round(median(seen), 3) for name, seen in rates.items()},
        "device_busy": {name: round(median(seen), 3) for name, seen in busy.items()},
        "over_inline": round(ratio("bus", "inline"), 3),
        "bus_share_of_work": round(max(0.0, 1 - ratio("bus", "unbussed")), 3),
    }


def in_words(told: Mapping[str, Any]) -> str:
    lines = [f"{'side':>10} {'orders/s':>10} {'device busy':>12}"]
    lines += [f"{name:>10} {rate:>10} {told['device_busy'][name]:>12}" for name, rate in told["orders_per_second"].items()]
    lines.append(
        f"the bus draws {told['over_inline']} times as many as the inline loop; the bus takes {told['bus_share_of_work']:.1%} of the work"
    )
    return "\n".join(lines)
