"""What a job's page in the console says of its webhooks: which were sent, and what the backend answered."""

import re
from pathlib import Path

import pytest

from actors.adapters.image_generation import ADAPTER
from actors.ledger import ACTORS as LEDGER
from actors.upload import ACTOR as UPLOAD
from actors.watermark import ACTOR as WATERMARK
from actors.webhook import ACTOR as WEBHOOK
from bus.settings import BusSettings
from contracts import broker_names
from tests.integration.test_image_order import GENERATION_IDS, form_c_order
from tests.integration.test_jobs import open_gateway
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.webhook_backend import open_webhook_backend

CREW = (*LEDGER, FAKE_IMAGE_ACTOR, WATERMARK, UPLOAD, WEBHOOK)


def rows_of(page: str) -> list[list[str]]:
    """The cells of the table of webhooks, as a reader sees them."""
    table = page.partition("<h2>Webhooks</h2>")[2].partition("</table>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    return [[" ".join(re.sub(r"<[^>]+>", "", cell).split()) for cell in row] for row in cells if row]


@pytest.mark.parametrize(("answers", "delivered", "status"), [([], "yes", "200"), ([410] * 20, "no", "")])
async def test_job_page_lists_webhooks_with_responses(
    bus_settings: BusSettings,
    broker_client: BrokerClient,
    start_worker: StartWorker,
    store_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[int],
    delivered: str,
    status: str,
) -> None:
    number = next(GENERATION_IDS)
    async with open_webhook_backend() as backend:
        backend.responses = list(answers)
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        monkeypatch.setenv("INTERNAL_API_TOKEN", "t" * 32)
        async with open_gateway(bus_settings, store_folder) as http, start_worker(*CREW, adapters=(ADAPTER,)):
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, form_c_order(number), exchange="")
            found: list[list[str]] = []

            async def told() -> bool:
                page = await http.get(f"/console/jobs/generation-{number}")
                found[:] = [row for row in rows_of(page.text) if row[0] != "progress"] if page.status_code == 200 else []
                return bool(found and found[-1][3] == delivered and (status or found[-1][4]))

            await wait_until(told, 30)
    assert (found[-1][2], bool(found[-1][4])) == (status, delivered == "no"), "and why it was not delivered"
