"""The table of webhooks on the page of a job: which were sent, and the backend's responses."""

import re
from pathlib import Path

import pytest

from actors.adapters.image_generation import build_adapter
from actors.ledger import ACTORS as LEDGER
from actors.upload import ACTOR as UPLOAD
from actors.watermark import ACTOR as WATERMARK
from actors.webhook import ACTOR as WEBHOOK
from bus.settings import BusSettings
from contracts import broker_names
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.gateway_app import open_gateway
from tests.support.webhook_backend import open_webhook_backend
from tests.support.worker_processes import GENERATION_IDS, form_c_order

ACTORS = (*LEDGER, FAKE_IMAGE_ACTOR, WATERMARK, UPLOAD, WEBHOOK)


def webhook_rows(page: str) -> list[list[str]]:
    """The visible text of each cell, by row."""
    table = page.partition("<h2>Webhooks</h2>")[2].partition("</table>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    return [[" ".join(re.sub(r"<[^>]+>", "", cell).split()) for cell in row] for row in cells if row]


@pytest.mark.parametrize(("responses", "delivered", "status"), [([], "yes", "200"), ([410] * 20, "no", "")])
async def test_job_page_lists_webhooks_with_responses(
    bus_settings: BusSettings,
    broker_client: BrokerClient,
    start_worker: StartWorker,
    store_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    responses: list[int],
    delivered: str,
    status: str,
) -> None:
    number = next(GENERATION_IDS)
    async with open_webhook_backend() as backend:
        backend.responses = list(responses)
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        monkeypatch.setenv("INTERNAL_API_TOKEN", "t" * 32)
        async with open_gateway(bus_settings, store_folder) as http, start_worker(*ACTORS, adapters=(build_adapter(),)):
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, form_c_order(number), exchange="")
            rows: list[list[str]] = []

            async def page_shows_outcome() -> bool:
                page = await http.get(f"/console/jobs/generation-{number}")
                rows[:] = [row for row in webhook_rows(page.text) if row[0] != "progress"] if page.status_code == 200 else []
                return bool(rows and rows[-1][3] == delivered and (status or rows[-1][4]))

            await wait_until(page_shows_outcome, 30)
    assert (rows[-1][2], bool(rows[-1][4])) == (status, delivered == "no"), "status, and a failure reason if not delivered"
