"""An order is taken back while the real engine draws it: `DELETE /jobs/{id}`, and the backend hears of it in its own words."""

from pathlib import Path
from typing import Any

import pytest

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import run_worker
from contracts import broker_names
from ops.local.tiny_models import make_tiny_models
from ops.registry import load_actors
from tests.integration.test_image_order import GENERATION_IDS, form_c_order
from tests.integration.test_jobs import open_gateway
from tests.support.broker_client import BrokerClient, wait_until
from tests.support.webhook_backend import open_webhook_backend

pytestmark = [pytest.mark.models, pytest.mark.timeout(180)]
STEPS = ["image_generation", "image", "watermark", "upload", "webhook", "ledger"]


async def test_cancel_during_generation_starts_next_order(
    bus_settings: BusSettings, broker_client: BrokerClient, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow by its size and count. The backend is told `failed` with CANCELLED once, and `complete` of the other order only."""
    slow, quick = next(GENERATION_IDS), next(GENERATION_IDS)
    staff, store = load_actors(STEPS), StoreSettings(store_url=store_folder.as_uri())
    async with open_webhook_backend() as backend:
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        monkeypatch.setenv("INTERNAL_API_TOKEN", "t" * 32)
        monkeypatch.setenv("IMAGE_MODEL", str(make_tiny_models(tmp_path)["tiny-sd"]))

        def heard(number: int) -> list[tuple[str, Any]]:
            calls = [(call.path.rpartition("/")[2], call.body) for call in backend.requests]
            return [(name, body) for name, body in calls if body["generation_id"] == number]

        async def drawing() -> bool:
            return any(name == "progress" and body["progress"]["current_step"] for name, body in heard(slow))

        async def both_over() -> bool:
            return all({name for name, _ in heard(number)} & {"failed", "complete"} for number in (slow, quick))

        async with (
            open_gateway(bus_settings, store_folder) as http,
            run_worker(staff.actors, staff.adapters, bus_settings, store, staff.ingests),
        ):
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, form_c_order(slow, num_inference_steps=150), exchange="")
            await wait_until(drawing, 60)
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, form_c_order(quick, num_inference_steps=2), exchange="")
            assert (await http.delete(f"/jobs/generation-{slow}")).status_code == 202
            await wait_until(both_over, 60)
            job = (await http.get(f"/jobs/generation-{slow}")).json()

    assert job["state"] == "cancelled"
    ((name, body),) = [call for call in heard(slow) if call[0] != "progress"]
    assert (name, body["error_code"]) == ("failed", "CANCELLED")
    assert max(body["progress"]["progress_percent"] for name, body in heard(slow) if name == "progress") < 100
    assert [name for name, _ in heard(quick) if name != "progress"] == ["complete"]
    assert [picture.name for picture in store_folder.rglob("generations/**/*.png")] == [f"gen-{quick}.png"]
