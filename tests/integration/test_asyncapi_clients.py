"""The AsyncAPI document in another language: AsyncAPI's own parser, and a Node client that only uses the document."""

import asyncio
import json
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from actors.adapters.image_generation import build_adapter
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
    checked = check_document(DOCUMENT)
    assert checked.returncode == 0, checked.stderr
    report = json.loads(checked.stdout)
    assert report["title"] == "Atelier"
    assert report["replies"] > 20


def test_asyncapi_parser_rejects_broken_document(tmp_path: Path) -> None:
    broken = tmp_path / "asyncapi.yaml"
    broken.write_text(DOCUMENT.read_text().replace("action: receive", "action: recieve", 1))
    assert check_document(broken).returncode != 0


@pytest.mark.usefixtures("purged_queues")
async def test_node_client_orders_image_and_receives_events(
    amqp_url: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await asyncio.to_thread(external_programs.install_node_packages)
    async with open_webhook_backend() as backend, AsyncExitStack() as stack:
        for name, value in {"BACKEND_API_URL": backend.url, "INTERNAL_API_TOKEN": "secret" * 6}.items():
            monkeypatch.setenv(name, value)
        await stack.enter_async_context(start_worker(*LEDGER, FAKE_IMAGE_ACTOR, WATERMARK, UPLOAD, WEBHOOK, adapters=(build_adapter(),)))
        process = await asyncio.create_subprocess_exec(
            *("node", "order.mjs", amqp_url, "770077"), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, stderr.decode()
    events = [json.loads(line) for line in stdout.splitlines()]
    steps = [(event["step"], event["kind"]) for event in events]
    assert steps[-1] == ("job", "completed")
    assert ("image", "progress") in steps
    assert ("upload", "completed") in steps
    assert all(event["names"] for event in events), "every event matches a message of the document"
    assert "event.upload.completed" in next(event["names"] for event in events if (event["step"], event["kind"]) == ("upload", "completed"))
