"""The AsyncAPI document as another language reads it: AsyncAPI's own parser, and a client that knows nothing else."""

import asyncio
import json
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from actors.adapters.image_generation import ADAPTER
from actors.ledger import ACTORS as LEDGER
from actors.upload import ACTOR as UPLOAD
from actors.watermark import ACTOR as WATERMARK
from actors.webhook import ACTOR as WEBHOOK
from tests.support import external_programs
from tests.support.broker_client import StartWorker
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.webhook_backend import open_webhook_backend

DOCUMENT = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"


def check_document(document: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["node", "check.mjs", str(document)], cwd=external_programs.install_node_packages(), capture_output=True, text=True, timeout=60
    )


def test_asyncapi_parser_reports_only_version_advice() -> None:
    done = check_document(DOCUMENT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["title"] == "Atelier"
    assert told["replies"] > 20


def test_asyncapi_parser_rejects_broken_document(tmp_path: Path) -> None:
    broken = tmp_path / "asyncapi.yaml"
    broken.write_text(DOCUMENT.read_text().replace("action: receive", "action: recieve", 1))
    assert check_document(broken).returncode != 0


@pytest.mark.usefixtures("customer")
async def test_a_client_in_node_orders_a_picture_and_follows_its_job(
    amqp_url: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await asyncio.to_thread(external_programs.install_node_packages)
    async with open_webhook_backend() as backend, AsyncExitStack() as stack:
        for name, value in {"BACKEND_API_URL": backend.url, "INTERNAL_API_TOKEN": "secret"}.items():
            monkeypatch.setenv(name, value)
        await stack.enter_async_context(start_worker(*LEDGER, FAKE_IMAGE_ACTOR, WATERMARK, UPLOAD, WEBHOOK, adapters=(ADAPTER,)))
        process = await asyncio.create_subprocess_exec(
            *("node", "order.mjs", amqp_url, "770077"), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, wrong = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, wrong.decode()
    events = [json.loads(line) for line in said.splitlines()]
    ways = [(event["step"], event["kind"]) for event in events]
    assert ways[-1] == ("job", "completed")
    assert ("image", "progress") in ways
    assert ("upload", "completed") in ways
    assert all(event["names"] for event in events), "every event is one that the document knows"
    assert "event.upload.completed" in next(event["names"] for event in events if (event["step"], event["kind"]) == ("upload", "completed"))
