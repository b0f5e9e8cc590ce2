"""The doctor passes on a complete stack, and names the remedy when one of its services is missing."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bus.settings import BusSettings
from contracts.image import Image
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.webhook_backend import open_webhook_backend

ROOT = Path(__file__).parents[2]


@dataclass
class Stack:
    """The environment in which the doctor runs."""

    environment: dict[str, str] = field(default_factory=dict)

    async def run_doctor(self, *steps: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """Run the command; return its exit status and the checks that failed, by name."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ops.cli", "doctor", "--json", *steps,
            cwd=ROOT, env=os.environ | self.environment, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        document = json.loads(output)
        assert document["ok"] == (process.returncode == 0)
        return int(process.returncode or 0), {check["name"]: check for check in document["checks"] if not check["ok"]}


@pytest.fixture
async def stack(bus_settings: BusSettings, store_folder: Path, tmp_path: Path, purged_queues: None) -> AsyncIterator[Stack]:
    assert bus_settings.database_url
    model = tmp_path / "model"
    model.mkdir()
    for file in ("model_index.json", "config.json"):
        (model / file).touch()
    async with open_webhook_backend() as backend:
        yield Stack(
            {
                "AMQP_URL": bus_settings.amqp_url.get_secret_value(),
                "DATABASE_URL": bus_settings.database_url.get_secret_value(),
                "STORE_URL": store_folder.as_uri(),
                "BACKEND_API_URL": backend.url,
                "IMAGE_MODEL": str(model),
                "VLM_MODEL": str(model),
            }
        )


async def test_doctor_passes_when_all_services_are_up(stack: Stack, start_worker: StartWorker) -> None:
    async with start_worker(FAKE_IMAGE_ACTOR):
        assert await stack.run_doctor("image") == (0, {})


async def test_queue_without_consumer_fails_when_named_or_not_empty(
    stack: Stack, start_worker: StartWorker, broker_client: BrokerClient
) -> None:
    async with start_worker(FAKE_IMAGE_ACTOR):
        pass
    status, failed = await stack.run_doctor("image")
    assert (status, failed["queues"]["cure"]) == (1, "atelier run image")
    assert "atelier.image has no consumer, 0 messages wait" in failed["queues"]["detail"]
    assert await stack.run_doctor() == (0, {})
    await broker_client.publish("image", Image(prompt="harbour").model_dump(mode="json", exclude_none=True))

    async def doctor_fails() -> bool:
        return (await stack.run_doctor())[0] == 1

    await wait_until(doctor_fails, seconds=30)


async def test_doctor_reports_missing_broker(stack: Stack, rabbitmq: RabbitNode) -> None:
    rabbitmq.kill()
    try:
        status, failed = await stack.run_doctor()
    finally:
        await asyncio.to_thread(rabbitmq.start)
    assert (status, set(failed)) == (1, {"rabbitmq", "queues"})
    assert "start that broker" in failed["rabbitmq"]["cure"]


async def test_doctor_reports_wrong_broker_password(stack: Stack, rabbitmq: RabbitNode) -> None:
    stack.environment["AMQP_URL"] = rabbitmq.url.replace(rabbitmq.identity.password, "not-the-password")
    status, failed = await stack.run_doctor()
    assert (status, set(failed)) == (1, {"rabbitmq", "queues"})
    assert "password" in failed["rabbitmq"]["cure"]
    assert "not-the-password" not in json.dumps(failed)


async def test_doctor_reports_missing_database(stack: Stack, postgres: EmbeddedPostgres) -> None:
    postgres.kill()
    try:
        status, failed = await stack.run_doctor()
    finally:
        await asyncio.to_thread(postgres.start)
    assert (status, set(failed)) == (1, {"postgres"})
    assert "start that server" in failed["postgres"]["cure"]


async def test_doctor_reports_missing_store(stack: Stack, store_folder: Path) -> None:
    shutil.rmtree(store_folder)
    store_folder.touch()
    status, failed = await stack.run_doctor()
    assert (status, set(failed)) == (1, {"store"})
    assert "STORE_URL" in failed["store"]["cure"]


async def test_doctor_reports_missing_backend(stack: Stack) -> None:
    stack.environment["BACKEND_API_URL"] = "http://127.0.0.1:9"
    status, failed = await stack.run_doctor()
    assert (status, set(failed)) == (1, {"webhooks"})
    assert "BACKEND_API_URL" in failed["webhooks"]["cure"]


async def test_doctor_reports_missing_model(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "model" / "model_index.json").unlink()
    status, failed = await stack.run_doctor()
    assert (status, set(failed)) == (1, {"image-model"})
    assert "IMAGE_MODEL" in failed["image-model"]["cure"]
