"""The gateway as Vertex AI runs it: a process configured by Vertex AI's variables, called without a key."""

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from actors import consult
from bus.settings import BusSettings
from ops.local.daemon import free_ports
from tests.support.broker_client import StartWorker, wait_until
from tests.support.fake_openai_server import open_fake_openai_server
from tests.support.http_attacks import sample_memory


@asynccontextmanager
async def container(bus: BusSettings, store: Path, port: int, ready_seconds: str = "0.5") -> AsyncIterator[httpx.AsyncClient]:
    variables = {"AIP_HTTP_PORT": str(port), "AIP_MODE": "PREDICTION", "AIP_HEALTH_ROUTE": "/ping", "AIP_PREDICT_ROUTE": "/predict"}
    variables |= {
        "AMQP_URL": bus.amqp_url.get_secret_value(),
        "STORE_URL": store.as_uri(),
        "GATEWAY_READY_SECONDS": ready_seconds,
        "HEALTH_PORT": "0",
    }
    command = [sys.executable, "-m", "ops.cli", "gateway"]
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | variables, cwd=Path(__file__).parents[2])
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            yield http
    finally:
        process.terminate()
        await process.wait()


async def test_vertex_routes_need_no_key_and_others_do(
    bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"instances": [{"prompt": "왜 건조한가요?"}]}
    async with open_fake_openai_server() as model, container(bus_settings, store_folder, free_ports(1)[0]) as http:
        for name, value in {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second"}.items():
            monkeypatch.setenv(name, value)
        await wait_until(lambda: is_reachable(http), 30)
        assert (await http.get("/ping")).json() == {"status": "loading"}
        assert (await http.post("/predict", json=body)).json() == {"error": "Model not ready"}
        async with start_worker(*consult.ACTORS):
            assert (await http.get("/ping")).json() == {"status": "healthy"}
            response = await http.post("/predict", json=body)
            assert (response.status_code, len(response.json()["predictions"])) == (200, 1), response.text
        assert (await http.get("/jobs")).status_code == 401
        assert (await http.post("/api/yh/llava/stage1/validate", json={})).status_code == 401


async def test_many_large_photos_at_once_hold_bounded_memory(
    bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of 10 MB at the same time: the body, once more as text, and one decoded file. What does not fit waits, then is a 503."""
    photo = base64.b64encode(b"\xff\xd8\xff" + os.urandom(9 << 20)).decode()
    body = json.dumps({"instances": [{"prompt": "?", "image": photo}]}).encode()
    port = free_ports(1)[0]
    async with open_fake_openai_server() as model:
        for name, value in {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second"}.items():
            monkeypatch.setenv(name, value)
        async with start_worker(*consult.ACTORS), container(bus_settings, store_folder, port, "20") as http:
            await wait_until(lambda: is_reachable(http), 30)
            (gateway,) = [process for process in psutil.Process().children(recursive=True) if listens(process, port)]
            before = gateway.memory_info().rss
            async with sample_memory(gateway.pid) as memory:
                post = partial(http.post, "/predict", content=body, headers={"Content-Type": "application/json"}, timeout=100)
                answers = await asyncio.gather(*(post() for _ in range(20)))
                small = await http.post("/predict", json={"instances": [{"prompt": "?"}]})
    assert {answer.status_code for answer in answers} <= {500, 503}, "it is no picture, or it did not fit in time"
    assert [answer for answer in answers if answer.status_code == 500], answers
    assert all(answer.headers.get("retry-after") for answer in answers if answer.status_code == 503)
    assert small.status_code == 200
    assert max(memory) - before < 500e6


def listens(process: psutil.Process, port: int) -> bool:
    with suppress(psutil.NoSuchProcess):  # such as a process of a database connection, which ends at any moment
        return any(connection.laddr.port == port for connection in process.net_connections("tcp") if connection.laddr)
    return False


async def is_reachable(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/ping")).status_code in (200, 503)
    except httpx.TransportError:
        return False
