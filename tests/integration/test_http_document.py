"""Every command in docs/http.md, run unchanged against a gateway with its actors."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from actors import embed
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.support.broker_client import StartWorker
from tests.support.fake_text_actor import FakeTextActor
from tests.support.gateway_app import JOB_ACTORS
from tests.support.raw_openai_server import RawAnswer, open_raw_server

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


async def run(command: str, **variables: str) -> str:
    assignments = [f"{name}={value}" for name, value in variables.items()]
    process = await asyncio.create_subprocess_shell(
        f"export {' '.join(assignments)}; {command}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, f"{command}: {process.returncode} {stderr.decode()}"
    return stdout.decode()


def answer_embedding(body: dict[str, Any]) -> RawAnswer:
    return RawAnswer(body={"data": [{"index": index, "embedding": [0.6, 0.8]} for index in range(len(body["input"]))]})


@pytest.fixture
async def embedding_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The server of the embed actor's model."""
    async with open_raw_server(answer_embedding) as server:
        server.route = "/embeddings"
        monkeypatch.setenv("EMBEDDING_SERVER_URL", server.url)
        yield


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands are curl's")
async def test_documented_http_commands_succeed(
    bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker, embedding_server: None
) -> None:
    app = create_app(bus_settings, GatewaySettings(), StoreSettings(store_url=store_folder.as_uri()))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    async with start_worker(*JOB_ACTORS, *FakeTextActor().actors, *embed.ACTORS):
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        url, job, outputs = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", "none", []
        for command in commands():
            outputs.append(await run(command, GATEWAY=url, JOB=job))
            if "wait=30" in command:
                job = json.loads(outputs[-1])["job_id"]
        server.should_exit = True
        await serving
    output_by_command = dict(zip(commands(), outputs, strict=True))
    assert '"state":"completed"' in output_of(output_by_command, "wait=30")
    assert "event: job.completed" in output_of(output_by_command, "/events")
    assert json.loads(output_of(output_by_command, "call the tool"))["choices"][0]["finish_reason"] == "tool_calls"
    assert "data: [DONE]" in output_of(output_by_command, "include_usage")
    assert len(json.loads(output_of(output_by_command, "Once upon"))["choices"]) == 2
    assert [entry["embedding"] for entry in json.loads(output_of(output_by_command, "an owl"))["data"]] == [pytest.approx([0.6, 0.8])] * 2
    assert "job-ended" in output_of(output_by_command, "DELETE $GATEWAY/jobs")


def output_of(output_by_command: dict[str, str], text: str) -> str:
    """The output of the first command that contains `text`."""
    return next(output for command, output in output_by_command.items() if text in command)
