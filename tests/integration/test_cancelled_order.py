"""An order is cancelled by `DELETE /jobs/{id}` while the real engine generates it, and the backend receives `failed` with CANCELLED."""

from pathlib import Path
from typing import Any

import pytest

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts import broker_names
from ops.local.tiny_models import make_tiny_models
from ops.registry import load_actors
from tests.support.broker_client import BrokerClient, wait_until
from tests.support.gateway_app import open_gateway
from tests.support.webhook_backend import open_webhook_backend
from tests.support.worker_processes import GENERATION_IDS, form_c_order

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]
STEPS = ["image_generation", "image", "watermark", "upload", "webhook", "ledger"]


async def test_cancel_during_generation_starts_next_order(
    bus_settings: BusSettings, broker_client: BrokerClient, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first order has many steps. The backend receives one `failed` for it, and `complete` for the other order only."""
    slow, quick = next(GENERATION_IDS), next(GENERATION_IDS)
    components, store = load_actors(STEPS), StoreSettings(store_url=store_folder.as_uri())
    async with open_webhook_backend() as backend:
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        monkeypatch.setenv("INTERNAL_API_TOKEN", "t" * 32)
        monkeypatch.setenv("IMAGE_MODEL", str(make_tiny_models(tmp_path)["tiny-sd"]))

        def calls_for(number: int) -> list[tuple[str, Any]]:
            calls = [(call.path.rpartition("/")[2], call.body) for call in backend.requests]
            return [(name, body) for name, body in calls if body["generation_id"] == number]

        async def generating() -> bool:
            return any(name == "progress" and body["progress"]["current_step"] for name, body in calls_for(slow))

        async def both_ended() -> bool:
            return all({name for name, _ in calls_for(number)} & {"failed", "complete"} for number in (slow, quick))

        async with (
            open_gateway(bus_settings, store_folder) as http,
            Worker(components.actors, components.adapters, bus_settings, store, components.ingests).run(),
        ):
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, form_c_order(slow, num_inference_steps=150), exchange="")
            await wait_until(generating, 150)  # the model process imports torch first
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, form_c_order(quick, num_inference_steps=2), exchange="")
            assert (await http.delete(f"/jobs/generation-{slow}")).status_code == 202
            await wait_until(both_ended, 100)
            job = (await http.get(f"/jobs/generation-{slow}")).json()

    assert job["state"] == "cancelled"
    ((name, body),) = [call for call in calls_for(slow) if call[0] != "progress"]
    assert (name, body["error_code"]) == ("failed", "CANCELLED")
    assert max(body["progress"]["progress_percent"] for name, body in calls_for(slow) if name == "progress") < 100
    assert [name for name, _ in calls_for(quick) if name != "progress"] == ["complete"]
    assert [picture.name for picture in store_folder.rglob("generations/**/*.png")] == [f"gen-{quick}.png"]
