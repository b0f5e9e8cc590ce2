"""An order is taken back while the real engine draws it: `DELETE /jobs/{id}`, and the backend hears of it in its own words."""

from pathlib import Path
from typing import Any

import pytest

from bus.serve import open_workshop
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from contracts import channels
from ops.models import make_tiny
from ops.workshop import hire
from tests.integration.conftest import Customer, soon
from tests.integration.test_image_order import NUMBERS, form_c
from tests.integration.test_jobs import opened
from tests.listening_backend import open_backend

pytestmark = [pytest.mark.models, pytest.mark.timeout(180)]
STEPS = ["image_generation", "image", "watermark", "upload", "webhook", "ledger"]


async def test_an_order_is_cancelled_while_it_is_drawn_and_the_next_is_drawn_at_once(
    bus_settings: BusSettings, customer: Customer, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow by its size and count. The backend is told `failed` with CANCELLED once, and `complete` of the other order only."""
    slow, quick = next(NUMBERS), next(NUMBERS)
    staff, store = hire(STEPS), StoreSettings(store_url=store_folder.as_uri())
    async with open_backend() as backend:
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        monkeypatch.setenv("INTERNAL_API_TOKEN", "t" * 32)
        monkeypatch.setenv("IMAGE_MODEL", str(make_tiny(tmp_path)["tiny-sd"]))

        def heard(number: int) -> list[tuple[str, Any]]:
            calls = [(call.path.rpartition("/")[2], call.body) for call in backend.heard]
            return [(name, body) for name, body in calls if body["generation_id"] == number]

        async def drawing() -> bool:
            return any(name == "progress" and body["progress"]["current_step"] for name, body in heard(slow))

        async def both_over() -> bool:
            return all({name for name, _ in heard(number)} & {"failed", "complete"} for number in (slow, quick))

        async with (
            opened(bus_settings, store_folder) as http,
            open_workshop(staff.actors, staff.adapters, bus_settings, store, staff.intakes),
        ):
            await customer.send(channels.IMAGE_GENERATION, form_c(slow, num_inference_steps=150), exchange="")
            await soon(drawing, 60)
            await customer.send(channels.IMAGE_GENERATION, form_c(quick, num_inference_steps=2), exchange="")
            assert (await http.delete(f"/jobs/generation-{slow}")).status_code == 202
            await soon(both_over, 60)
            job = (await http.get(f"/jobs/generation-{slow}")).json()

    assert job["state"] == "cancelled"
    ((name, body),) = [call for call in heard(slow) if call[0] != "progress"]
    assert (name, body["error_code"]) == ("failed", "CANCELLED")
    assert max(body["progress"]["progress_percent"] for name, body in heard(slow) if name == "progress") < 100
    assert [name for name, _ in heard(quick) if name != "progress"] == ["complete"]
    assert [picture.name for picture in store_folder.rglob("generations/**/*.png")] == [f"gen-{quick}.png"]
