"""The gateway's application in this process, and what tests of jobs share: the actors, an order's body, the end of a job, its events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from actors.ledger import ACTORS
from actors.upload import ACTOR as UPLOAD
from actors.watermark import ACTOR as WATERMARK
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.support.broker_client import wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR

JOB_ACTORS = (*ACTORS, FAKE_IMAGE_ACTOR, WATERMARK, UPLOAD)


@asynccontextmanager
async def open_gateway(bus: BusSettings, store: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of a gateway that runs in this process."""
    app = create_app(bus, GatewaySettings.model_validate(settings), StoreSettings(store_url=store.as_uri()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=30) as client,
    ):
        yield client


def order_body(prompt: str = "harbour", **more: Any) -> dict[str, Any]:
    return {"kind": "image_order", "prompt": prompt, "seed": 42, "width": 128, "height": 128, "artist": "Jane Doe"} | more


async def wait_until_job_ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job's fields, once it has completed, failed or been cancelled."""
    job: dict[str, Any] = {}

    async def has_ended() -> bool:
        response = await http.get(f"/jobs/{job_id}")
        job.update(response.json())
        return response.status_code == 200 and job["state"] in {"completed", "failed", "cancelled"}

    await wait_until(has_ended, 20)
    return job


def parse_events(text: str) -> list[dict[str, str]]:
    """Server-sent events as a browser reads them."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return [dict(line.split(": ", 1) for line in block) for block in blocks if any(line.startswith("data: ") for line in block)]
