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
from contracts import channels
from tests.integration.conftest import Customer, Workshop, soon
from tests.integration.test_image_order import NUMBERS, form_c
from tests.integration.test_jobs import opened
from tests.listening_backend import open_backend
from tests.painter import PAINTER

CREW = (*LEDGER, PAINTER, WATERMARK, UPLOAD, WEBHOOK)


def rows_of(page: str) -> list[list[str]]:
    """The cells of the table of webhooks, as a reader sees them."""
    table = page.partition("<h2>Webhooks</h2>")[2].partition("</table>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    return [[" ".join(re.sub(r"<[^>]+>", "", cell).split()) for cell in row] for row in cells if row]


@pytest.mark.parametrize(("answers", "delivered", "status"), [([], "yes", "200"), ([410] * 20, "no", "")])
async def test_each_webhook_stands_with_its_answer(
    bus_settings: BusSettings,
    customer: Customer,
    workshop: Workshop,
    store_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[int],
    delivered: str,
    status: str,
) -> None:
    number = next(NUMBERS)
    async with open_backend() as backend:
        backend.answers = list(answers)
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        monkeypatch.setenv("INTERNAL_API_TOKEN", "t" * 32)
        async with opened(bus_settings, store_folder) as http, workshop(*CREW, adapters=(ADAPTER,)):
            await customer.send(channels.IMAGE_GENERATION, form_c(number), exchange="")
            found: list[list[str]] = []

            async def told() -> bool:
                page = await http.get(f"/console/jobs/generation-{number}")
                found[:] = [row for row in rows_of(page.text) if row[0] != "progress"] if page.status_code == 200 else []
                return bool(found and found[-1][3] == delivered and (status or found[-1][4]))

            await soon(told, 30)
    assert (found[-1][2], bool(found[-1][4])) == (status, delivered == "no"), "and why it was not delivered"
