"""Every command of docs/http.md, run as it stands there, against a gateway with its actors."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
import uvicorn

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.integration.test_jobs import JOB_ACTORS
from tests.support.broker_client import StartWorker

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


async def run(command: str, **variables: str) -> str:
    words = [f"{name}={value}" for name, value in variables.items()]
    process = await asyncio.create_subprocess_shell(
        f"export {' '.join(words)}; {command}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, wrong = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, f"{command}: {process.returncode} {wrong.decode()}"
    return said.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands are curl's")
async def test_documented_http_commands_succeed(bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker) -> None:
    app = create_app(bus_settings, GatewaySettings(), StoreSettings(store_url=store_folder.as_uri()))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    async with start_worker(*JOB_ACTORS):
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        url, job, said = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", "none", []
        for command in commands():
            said.append(await run(command, GATEWAY=url, JOB=job))
            if "wait=30" in command:
                job = json.loads(said[-1])["job_id"]
        server.should_exit = True
        await serving
    answers = dict(zip(commands(), said, strict=True))
    assert '"state":"completed"' in answered(answers, "wait=30")
    assert "event: job.completed" in answered(answers, "/events")
    assert "job-ended" in answered(answers, "DELETE $GATEWAY/jobs")


def answered(answers: dict[str, str], words: str) -> str:
    """What the first command with these words said."""
    return next(said for command, said in answers.items() if words in command)
