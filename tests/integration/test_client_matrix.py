"""Clients of OpenAI's API, unchanged, against a gateway and a worker with small models: each call runs, and docs/http.md has the table."""

import asyncio
import base64
import io
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from PIL import Image

from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_diffusion
from actors.engines.language.tiny_llama import write_tiny_llama
from bus.settings import BusSettings
from tests.support.client_matrix import (
    CLIENTS,
    FOLDER,
    NODE_CLIENT,
    NODE_PACKAGE,
    PYTHON,
    Call,
    format_table,
    page_table,
    parse_calls,
    parse_table,
    store_calls,
)
from tests.support.gateway_process import open_gateway_process
from tests.support.tiny_encoders import write_tiny_encoder
from tests.support.worker_processes import wait_until_ready

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]
STEPS = ("text", "response.run", "embed", "moderate", "image")
CALL_SECONDS = 230


def draw_picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((256, 256)).convert("RGB").save(file, "PNG")
    return file.getvalue()


async def run_client(*command: str) -> list[Call]:
    """The results of a client's calls."""
    process = await asyncio.create_subprocess_exec(*command, cwd=FOLDER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        output, errors = await asyncio.wait_for(process.communicate(), CALL_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    calls = parse_calls(output.decode())
    assert process.returncode == 0, errors.decode()[-3000:]
    return calls


@pytest.fixture
async def gateway_url(bus_settings: BusSettings, store_folder: Path, tmp_path: Path) -> AsyncIterator[str]:
    """A gateway and one worker process with every step that the clients call, each with a small model."""
    environment = os.environ | worker_environment(bus_settings, store_folder, tmp_path)
    async with AsyncExitStack() as stack:
        log = stack.enter_context((tmp_path / "worker.log").open("w+b"))
        command = [sys.executable, "-m", "ops.cli", "run", *STEPS]
        worker = await asyncio.create_subprocess_exec(*command, env=environment, stderr=log)
        stack.push_async_callback(stop, worker)
        await wait_until_ready(worker, log, seconds=120)
        gateway = await stack.enter_async_context(open_gateway_process(bus_settings, STORE_URL=store_folder.as_uri()))
        yield gateway.url


async def stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


def worker_environment(bus: BusSettings, store: Path, folder: Path) -> dict[str, str]:
    """The settings of the worker; the models are written into `folder`."""
    write_tiny_llama(text := folder / "text")
    write_tiny_encoder(embedding := folder / "embedding")
    write_tiny_diffusion(image := folder / "image")
    (words := folder / "words.txt").write_text("[violence]\nforbiddenword\n")
    return {
        "AMQP_URL": bus.amqp_url.get_secret_value(),
        "DATABASE_URL": bus.database_url.get_secret_value(),
        "STORE_URL": store.as_uri(),
        "VLLM_MODEL": str(text),
        "TEXT_ENGINE": "embedded",
        "EMBEDDING_MODEL": str(embedding),
        "IMAGE_MODEL": str(image),
        "MODERATION_WORDS": str(words),
        "IMAGE_MEASURE_SECONDS": "0",
        "OMP_NUM_THREADS": "1",
    }


async def test_clients_run_unchanged(gateway_url: str) -> None:
    """The page has the results of this run; where they differ, `python -m tests.support.client_matrix` writes the table."""
    if not PYTHON.exists():
        pytest.skip("the clients are not installed: make venv-clients")
    picture = base64.b64encode(draw_picture()).decode()
    calls = await run_client(str(PYTHON), "run_calls.py", gateway_url, picture)
    node = shutil.which("node") if NODE_PACKAGE.exists() else None
    calls += await run_client(node, "run_calls.mjs", gateway_url, picture) if node else []
    clients = {call.client for call in calls}
    assert clients == {client for client in CLIENTS if node or client != NODE_CLIENT}
    store_calls(calls)
    assert [call for call in calls if not call.ok] == []
    on_page = {key: result for key, result in parse_table(page_table()).items() if key[1] in clients}
    assert on_page == parse_table(format_table(calls))
    if node is None:
        pytest.skip("the clients of Python passed; that of Node needs node, npm and make venv-clients")
