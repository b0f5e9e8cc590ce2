"""Image orders from the foreign queue to the backend's webhooks, through every actor; the model is a fake.

The broker, the database, the store, the processes and the HTTP receiver are real.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from bus.settings import BusSettings
from contracts import broker_names
from contracts.wire import Header
from tests.support.broker_client import BrokerClient
from tests.support.webhook_backend import open_webhook_backend
from tests.support.worker_processes import GENERATION_IDS, WorkerProcesses, form_c_order

STEPS = ("image_generation", "image", "watermark", "upload", "webhook", "ledger")


@pytest.fixture
async def worker_processes(bus_settings: BusSettings, broker_client: BrokerClient, store_folder: Path) -> AsyncIterator[WorkerProcesses]:
    async with open_webhook_backend() as backend:
        urls = {"AMQP_URL": bus_settings.amqp_url.get_secret_value(), "DATABASE_URL": bus_settings.database_url.get_secret_value()}  # type: ignore[union-attr]
        delays = {"RETRY_DELAYS_SECONDS": "0.1,0.2", "LONG_DELAYS_SECONDS": "0.5", "GRACE_SECONDS": "3"}
        services = {"STORE_URL": store_folder.as_uri(), "BACKEND_API_URL": backend.url, "INTERNAL_API_TOKEN": "t" * 32}
        yield WorkerProcesses(dict(os.environ) | urls | delays | services, store_folder, backend, broker_client)


async def test_image_order_uploads_signed_image_and_calls_webhook(worker_processes: WorkerProcesses) -> None:
    """Progress in order, then `complete` once with a link, seed and tags; the picture is stored under the order's name."""
    number = next(GENERATION_IDS)
    async with worker_processes.start_process(*STEPS):
        await worker_processes.publish_order(form_c_order(number, artist_name="김작가 🎨"))
        calls = await worker_processes.wait_for_webhooks("complete")
    percents = [call.body["progress"]["progress_percent"] for call in worker_processes.backend.requests if "progress" in call.body]
    assert percents == sorted(set(percents))
    assert calls[-1] == "complete"
    complete = worker_processes.backend.requests[-1].body
    assert (complete["generation_id"], complete["metadata"]["seed"], complete["metadata"]["prompt_tags"]) == (number, 42, ["harbour"])
    assert complete["metadata"]["signature_left_out"] == "🎨"
    assert worker_processes.backend.requests[-1].headers["authorization"] == "Bearer " + "t" * 32
    (picture,) = worker_processes.stored_pictures()
    assert picture.name == f"gen-{number}.png"
    with Pillow.open(io.BytesIO(picture.read_bytes())) as opened:
        assert (opened.size, opened.mode) == ((512, 512), "RGB")
        assert len(opened.getcolors(1 << 20)) > 1, "the signature is drawn"
        assert opened.text["artist"] == "김작가 🎨"  # type: ignore[attr-defined]


async def test_duplicate_order_is_processed_once(worker_processes: WorkerProcesses) -> None:
    number = next(GENERATION_IDS)
    async with worker_processes.start_process(*STEPS):
        for _ in range(2):
            await worker_processes.publish_order(form_c_order(number))
        await worker_processes.wait_for_webhooks("complete")
        await asyncio.sleep(1)
    assert worker_processes.backend.paths.count("complete") == 1
    assert len(worker_processes.stored_pictures()) == 1


async def test_transient_failure_is_retried(worker_processes: WorkerProcesses) -> None:
    async with worker_processes.start_process(*STEPS):
        await worker_processes.publish_order(form_c_order(next(GENERATION_IDS), prompt="shaky"))
        assert "failed" not in await worker_processes.wait_for_webhooks("complete")


@pytest.mark.parametrize(
    ("data", "queue", "code"),
    [
        ({"prompt": "fails"}, "image", "lora-missing"),
        ({"count": 5}, "image_generation", "invalid-count"),
        ({"aspect_ratio": "3:1"}, "image_generation", "unknown-size"),
        ({"signature_path": "http://127.0.0.1:9/signature.png"}, "watermark", "asset-refused"),
    ],
)
async def test_failing_order_is_dead_lettered_and_reported_once(
    worker_processes: WorkerProcesses, data: dict[str, Any], queue: str, code: str
) -> None:
    """The dead letter and the `failed` webhook name the cause; the next order is not affected."""
    failing, succeeding = next(GENERATION_IDS), next(GENERATION_IDS)
    async with worker_processes.start_process(*STEPS):
        await worker_processes.publish_order(form_c_order(failing, **data))
        await worker_processes.publish_order(form_c_order(succeeding))
        await worker_processes.wait_for_webhooks("complete", "failed")
        letter = await worker_processes.broker_client.take_message(broker_names.dead_letter_queue(queue))
    (failed,) = [call.body for call in worker_processes.backend.requests if call.path.endswith("failed")]
    assert (failed["generation_id"], failed["error_code"], failed["retry_count"]) == (failing, code.upper().replace("-", "_"), 3)
    assert letter.headers[Header.FAULT_CODE] == code


async def test_undecodable_order_is_dead_lettered_with_cause(worker_processes: WorkerProcesses) -> None:
    """It has no generation id, so no webhook is sent; the dead letter has the original body."""
    async with worker_processes.start_process(*STEPS):
        await worker_processes.publish_order(b"{nope")
        letter = await worker_processes.broker_client.take_message(broker_names.dead_letter_queue("image_generation"))
    assert (letter.body, letter.headers[Header.FAULT_CODE]) == (b"{nope", "invalid-json")
    assert worker_processes.backend.paths == []


@pytest.mark.parametrize("step", ["image", "watermark", "upload"])
@pytest.mark.parametrize("point", ["before-handle", "before-mark-done", "before-publish", "before-ack"])
async def test_worker_killed_at_any_point_is_exactly_once(worker_processes: WorkerProcesses, tmp_path: Path, step: str, point: str) -> None:
    """After SIGKILL of the step's process, another one finishes the order: one picture, one `complete`."""
    marker = tmp_path / "died"
    others = [other for other in STEPS if other != step]
    async with (
        worker_processes.start_process(*others),
        worker_processes.start_process(step, crash_point=point, marker_file=marker) as killed_process,
    ):
        await worker_processes.publish_order(form_c_order(next(GENERATION_IDS)))
        assert await asyncio.wait_for(killed_process.wait(), 30) == -9
        async with worker_processes.start_process(step):
            await worker_processes.wait_for_webhooks("complete")
    assert len(worker_processes.stored_pictures()) == 1


@pytest.mark.parametrize("point", ["before-handle", "before-publish", "before-ack"])
async def test_webhook_worker_killed_after_call_does_not_repeat_call(worker_processes: WorkerProcesses, tmp_path: Path, point: str) -> None:
    """The inbox and the delivery lock prevent a second call: the backend receives `complete` once."""
    async with worker_processes.start_process(*(step for step in STEPS if step != "webhook")):
        await worker_processes.publish_order(form_c_order(next(GENERATION_IDS)))
        async with worker_processes.start_process("webhook", crash_point=point, marker_file=tmp_path / "died") as killed_process:
            assert await asyncio.wait_for(killed_process.wait(), 30) == -9
        async with worker_processes.start_process("webhook"):
            await worker_processes.wait_for_webhooks("complete")
