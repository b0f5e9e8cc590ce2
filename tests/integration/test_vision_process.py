"""The vision steps share one process and one copy of the model: over the whole stack, and also when it is loaded at the first request."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from bus.settings import BusSettings
from ops.local.daemon import free_ports
from ops.local.tiny_models import TINY_DIFFUSION, TINY_VLM, copy_trained_models
from ops.registry import MODULES, processes_of
from ops.supervisor import GATEWAY, open_supervisor
from tests.support.broker_client import BrokerClient, wait_until

pytestmark = [pytest.mark.models, pytest.mark.timeout(400)]

LOADING, START_SECONDS = "Loading LLaVa model", 240.0
Line = tuple[str, str]


@asynccontextmanager
async def run_processes(
    processes: Sequence[str], bus_settings: BusSettings, store_folder: Path, **variables: str
) -> AsyncIterator[list[Line]]:
    """As `atelier up` runs them, with tiny models. Yields their output: process and line."""
    assert bus_settings.database_url
    models = await asyncio.to_thread(copy_trained_models, store_folder.parent / "models")
    environment = os.environ | {
        "AMQP_URL": bus_settings.amqp_url.get_secret_value(),
        "DATABASE_URL": bus_settings.database_url.get_secret_value(),
        "STORE_URL": store_folder.as_uri(),
        "IMAGE_MODEL": str(models[TINY_DIFFUSION]),
        "IMAGE_WARM": "false",
        "VLM_MODEL": str(models[TINY_VLM]),
        "CONSULT_MAX_NEW_TOKENS": "4",
        "VLLM_SERVER_URL": "http://127.0.0.1:9/v1",
        "GATEWAY_PORT": "0",
        **variables,
    }
    lines: list[Line] = []
    async with open_supervisor(processes, environment, lambda process, line: lines.append((process, line))) as supervisor:
        await supervisor.wait_until_ready(timeout_seconds=START_SECONDS)
        yield lines


def loads(lines: Sequence[Line]) -> list[str]:
    """The process of each load."""
    return [process for process, line in lines if LOADING in line]


async def ask(client: BrokerClient, step: str, **body: object) -> tuple[str | None, dict[str, object]]:
    await client.publish(step, body, reply_to=client.reply_queue, correlation_id=step)
    return await client.next_reply(START_SECONDS)


async def test_whole_stack_loads_the_vision_model_once(bus_settings: BusSettings, store_folder: Path, broker_client: BrokerClient) -> None:
    """Every process that `atelier up` starts; all three steps report to one health server and have consumers."""
    port = free_ports(1)[0]
    processes = [*processes_of(list(MODULES)), GATEWAY]
    processes.insert(0, processes.pop(processes.index("vision")))  # the first process has the health port
    async with run_processes(processes, bus_settings, store_folder, HEALTH_PORT=str(port)) as lines:

        async def loaded() -> bool:
            return any('"model.loaded"' in line for _, line in lines)

        await wait_until(loaded, START_SECONDS)
        kind, answer = await ask(broker_client, "consult", prompt="?")
        async with httpx.AsyncClient() as http:
            ready = (await http.get(f"http://127.0.0.1:{port}/health/ready", timeout=30)).json()
    assert loads(lines) == ["vision"]
    assert kind == "consult.done.v1", answer
    assert {f"{check}:{step}" for check in ("engine", "queue") for step in ("consult", "validate", "judge")} <= set(ready["parts"])


async def test_deferred_model_is_loaded_once_by_the_first_requests(
    bus_settings: BusSettings, store_folder: Path, broker_client: BrokerClient
) -> None:
    """VLM_WARM=false: ready before the load, and the readiness query says that nothing is loaded."""
    async with run_processes(["vision"], bus_settings, store_folder, VLM_WARM="false") as lines:
        _, before = await ask(broker_client, "consult.ready")
        assert (before["loaded"], loads(lines)) == (False, [])
        for number in range(3):
            await broker_client.publish("consult", {"prompt": f"question {number}"}, reply_to=broker_client.reply_queue)
        kinds = [(await broker_client.next_reply(START_SECONDS))[0] for _ in range(3)]
        _, after = await ask(broker_client, "consult.ready")
    assert kinds == ["consult.done.v1"] * 3
    assert (after["loaded"], after["model"], loads(lines)) == (True, before["model"], ["vision"])
