"""The doctor on the local stack: green, and red with the right advice when one part after the other is taken away."""

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
    """What the doctor is told of the stack."""

    environment: dict[str, str] = field(default_factory=dict)

    async def asked(self, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """The command itself: its status, and the checks that failed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ops.cli", "doctor", "--json", *words,
            cwd=ROOT, env=os.environ | self.environment, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        document = json.loads(said)
        assert document["ok"] == (process.returncode == 0)
        return int(process.returncode or 0), {check["name"]: check for check in document["checks"] if not check["ok"]}


@pytest.fixture
async def stack(bus_settings: BusSettings, store_folder: Path, tmp_path: Path) -> AsyncIterator[Stack]:
    assert bus_settings.database_url
    model = tmp_path / "model"
    model.mkdir()
    for mark in ("model_index.json", "config.json"):
        (model / mark).touch()
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


async def test_doctor_passes_when_all_services_are_up(stack: Stack, start_worker: StartWorker, broker_client: BrokerClient) -> None:
    async with start_worker(FAKE_IMAGE_ACTOR):
        assert await stack.asked("image") == (0, {})


async def test_queue_without_consumer_fails_when_named_or_not_empty(
    stack: Stack, start_worker: StartWorker, broker_client: BrokerClient
) -> None:
    async with start_worker(FAKE_IMAGE_ACTOR):
        pass
    status, failed = await stack.asked("image")
    assert (status, failed["queues"]["cure"]) == (1, "atelier run image")
    assert "atelier.image has no consumer, 0 messages wait" in failed["queues"]["detail"]
    assert await stack.asked() == (0, {})
    await broker_client.publish("image", Image(prompt="harbour").model_dump(mode="json", exclude_none=True))

    async def red() -> bool:
        return (await stack.asked())[0] == 1

    await wait_until(red, seconds=30)


async def test_doctor_reports_missing_broker(stack: Stack, rabbitmq: RabbitNode) -> None:
    rabbitmq.kill()
    try:
        status, failed = await stack.asked()
    finally:
        await asyncio.to_thread(rabbitmq.start)
    assert (status, set(failed)) == (1, {"rabbitmq", "queues"})
    assert "start that broker" in failed["rabbitmq"]["cure"]


async def test_doctor_reports_wrong_broker_password(stack: Stack, rabbitmq: RabbitNode) -> None:
    stack.environment["AMQP_URL"] = rabbitmq.url.replace(rabbitmq.identity.password, "not-the-password")
    status, failed = await stack.asked()
    assert (status, set(failed)) == (1, {"rabbitmq", "queues"})
    assert "password" in failed["rabbitmq"]["cure"]
    assert "not-the-password" not in json.dumps(failed)


async def test_doctor_reports_missing_database(stack: Stack, postgres: EmbeddedPostgres, broker_client: BrokerClient) -> None:
    postgres.kill()
    try:
        status, failed = await stack.asked()
    finally:
        await asyncio.to_thread(postgres.start)
    assert (status, set(failed)) == (1, {"postgres"})
    assert "start that server" in failed["postgres"]["cure"]


async def test_doctor_reports_missing_store(stack: Stack, store_folder: Path, broker_client: BrokerClient) -> None:
    shutil.rmtree(store_folder)
    store_folder.touch()
    status, failed = await stack.asked()
    assert (status, set(failed)) == (1, {"store"})
    assert "STORE_URL" in failed["store"]["cure"]


async def test_doctor_reports_missing_backend(stack: Stack, broker_client: BrokerClient) -> None:
    stack.environment["BACKEND_API_URL"] = "http://127.0.0.1:9"
    status, failed = await stack.asked()
    assert (status, set(failed)) == (1, {"webhooks"})
    assert "BACKEND_API_URL" in failed["webhooks"]["cure"]


async def test_doctor_reports_missing_model(stack: Stack, tmp_path: Path, broker_client: BrokerClient) -> None:
    (tmp_path / "model" / "model_index.json").unlink()
    status, failed = await stack.asked()
    assert (status, set(failed)) == (1, {"image-model"})
    assert "IMAGE_MODEL" in failed["image-model"]["cure"]
