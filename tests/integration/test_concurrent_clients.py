"""A thousand concurrent clients of one gateway process with slow replies, and the memory that it takes."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import pytest

from bus.actor import Actor, Context, Handler, Resources
from bus.settings import BusSettings
from contracts.consult import Consult, ConsultDone
from contracts.wire import Step
from tests.support.broker_client import StartWorker
from tests.support.gateway_process import GatewayProcess, open_gateway_process

CLIENTS, REPLY_SECONDS = 1000, 2.0
ORDER = {"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "how long?"}}]}


async def reply_slowly(command: Consult, context: Context) -> ConsultDone:
    await asyncio.sleep(REPLY_SECONDS)
    return ConsultDone(prediction=command.prompt)


@asynccontextmanager
async def open_slow(resources: Resources) -> AsyncIterator[Handler]:
    yield reply_slowly


SLOW = Actor(
    step=Step.CONSULT, command=Consult, result=ConsultDone, open=open_slow, timeout_seconds=30, prefetch=CLIENTS, deduplicate=False
)


@pytest.fixture
async def gateway_process(bus_settings: BusSettings) -> AsyncIterator[GatewayProcess]:
    async with open_gateway_process(bus_settings, GATEWAY_RATE_REQUESTS="0") as opened:
        yield opened


def measure_import() -> float:
    """Seconds of processor time."""
    before = os.times()
    subprocess.run([sys.executable, "-c", "import faststream.rabbit, fastapi, jinja2, uvicorn, yaml"], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


async def test_gateway_starts_fast_with_small_memory(gateway_process: GatewayProcess) -> None:
    """At most twice the CPU time of the libraries that it needs, 85 MB, no torch. A busy machine slows both down, but not always alike:
    the median of three imports counts.
    """
    cpu = gateway_process.psutil_process.cpu_times()
    libraries = median([await asyncio.to_thread(measure_import) for _ in range(3)])
    assert cpu.user + cpu.system < 2 * libraries
    assert gateway_process.started_seconds < 10
    assert gateway_process.psutil_process.memory_info().rss < 85e6
    assert (await gateway_process.request("GET", "/health"))[0] == 200
    mapped = {mapping.path for mapping in gateway_process.psutil_process.memory_maps()}
    assert mapped
    assert not [path for path in mapped if "torch" in path]


async def test_thousand_concurrent_clients_receive_replies(
    gateway_process: GatewayProcess, start_worker: StartWorker, bus_settings: BusSettings
) -> None:
    """In much less time than one after the other, without a further thread, in little memory."""
    long_timeout = bus_settings.model_copy(update={"publish_timeout_seconds": 60.0})  # Three thousand messages at once.
    async with start_worker(SLOW, settings=long_timeout):
        before, threads = gateway_process.psutil_process.memory_info().rss, gateway_process.psutil_process.num_threads()
        started = time.monotonic()
        calls = [asyncio.create_task(gateway_process.request("POST", "/jobs?wait=60", ORDER)) for _ in range(CLIENTS)]
        await asyncio.sleep(REPLY_SECONDS)
        peak = gateway_process.psutil_process.memory_info().rss
        answers = await asyncio.gather(*calls)
        seconds = time.monotonic() - started
        after = (await gateway_process.request("GET", "/health"))[1]
    assert [status for status, _ in answers] == [200] * CLIENTS
    assert {answer["result"]["prediction"] for _, answer in answers} == {"how long?"}
    assert len({answer["job_id"] for _, answer in answers}) == CLIENTS
    assert (after["waiting"], after["late_replies"]) == (0, 0)
    assert gateway_process.psutil_process.num_threads() == threads
    assert peak - before < 100e6
    assert seconds < 60, "sequentially they would take half an hour"


async def test_late_replies_are_counted(gateway_process: GatewayProcess, start_worker: StartWorker) -> None:
    async with start_worker(SLOW):
        answers = await asyncio.gather(*(gateway_process.request("POST", "/jobs?wait=0.1", ORDER) for _ in range(20)))
        assert {status for status, _ in answers} == {202}
        async with asyncio.timeout(20):
            while (await gateway_process.request("GET", "/health"))[1]["late_replies"] < 20:
                await asyncio.sleep(0.1)
