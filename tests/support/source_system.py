"""The source system of the vision actors for tests: its tables, its asset folder, and a client of the gateway."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from PIL import Image, ImageDraw, ImageFont

from bus.amqp.request_reply import RequestClient
from bus.persistence.pool import set_json_codecs
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings

SAMPLE_TEXT = "SALE TODAY"


def draw_text_picture(text: str = "#ffffff", background: str = "#202020") -> bytes:
    """A PNG of 320 x 320 pixels with text in its upper fifth."""
    image = Image.new("RGB", (320, 320), background)
    ImageDraw.Draw(image).text((20, 16), SAMPLE_TEXT, fill=text, font=ImageFont.load_default(40))
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True)
class SourceDatabase:
    """The source system: its tables and its folder of assets."""

    pool: asyncpg.Pool
    assets: Path

    def write_asset(self, data: bytes) -> str:
        name = f"{uuid4()}.png"
        (self.assets / name).write_bytes(data)
        return f"/assets/{name}"

    async def insert_picture(self, url: str) -> str:
        insert = "insert into public.image_assets (image_asset_id, image_url) values (gen_random_uuid(), $1) returning image_asset_id"
        return str(await self.pool.fetchval(insert, url))

    async def insert_job(self, *, tenant: str = "tenant-1", desc_eng: str | None = None) -> str:
        job = await self.pool.fetchval(
            "insert into public.jobs (job_id, tenant_id) values (gen_random_uuid(), $1) returning job_id", tenant
        )
        if desc_eng:
            await self.pool.execute("insert into public.job_inputs (job_id, desc_eng) values ($1, $2)", job, desc_eng)
        return str(job)

    async def insert_variant(
        self, *, step: str = "img_gen", status: str = "done", job: str | None = None, **columns: Any
    ) -> dict[str, str]:
        """Insert a variant with an image (`img_asset_id`, default: one with text; "none"): the ids of a request about it."""
        job = job or await self.insert_job()
        picture = columns.get("img_asset_id") or await self.insert_picture(self.write_asset(draw_text_picture()))
        row = (job, None if picture == "none" else picture, columns.get("overlaid"), step, status)
        variant = await self.pool.fetchval(
            """insert into public.jobs_variants
            (job_variants_id, job_id, img_asset_id, overlaid_img_asset_id, creation_order, current_step, status)
            values (gen_random_uuid(), $1, $2, $3, 1, $4, $5) returning job_variants_id""",
            *row,
        )
        return {"job_variants_id": str(variant), "job_id": job, "tenant_id": "tenant-1"}

    async def insert_overlay(self, ids: dict[str, str], layout: dict[str, Any] | None) -> str:
        insert = """insert into public.overlay_layouts (overlay_id, job_variants_id, layout, x_ratio, y_ratio, width_ratio, height_ratio)
            values (gen_random_uuid(), $1, $2, 0, 0, 1, 0.2) returning overlay_id"""
        return str(await self.pool.fetchval(insert, ids["job_variants_id"], layout))

    async def variant_state(self, ids: dict[str, str]) -> tuple[str, str]:
        row = await self.pool.fetchrow(
            "select current_step, status from public.jobs_variants where job_variants_id = $1", ids["job_variants_id"]
        )
        return row["current_step"], row["status"]

    async def vlm_traces(self, ids: dict[str, str]) -> list[asyncpg.Record]:
        query = "select * from public.vlm_traces where job_variants_id = $1 order by created_at"
        return list(await self.pool.fetch(query, ids["job_variants_id"]))


@asynccontextmanager
async def open_source_database(database_url: str, assets: Path) -> AsyncIterator[SourceDatabase]:
    assets.mkdir(exist_ok=True)
    async with asyncpg.create_pool(database_url, min_size=1, max_size=4, init=set_json_codecs) as pool:
        yield SourceDatabase(pool, assets)


@dataclass(frozen=True)
class GatewayClient:
    """An HTTP client of the gateway's application, and its client for requests over the bus."""

    http: httpx.AsyncClient
    requests: RequestClient


@asynccontextmanager
async def open_gateway_client(bus: BusSettings, store: StoreSettings, **environment: Any) -> AsyncIterator[GatewayClient]:
    """A gateway with these environment variables."""
    variables = {"GATEWAY_HEALTH_NEEDS_CONSULT": "true", "GATEWAY_READY_SECONDS": "4"} | environment
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        app = create_app(bus, GatewaySettings(), store)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60)
    async with app.router.lifespan_context(app), client as http:
        yield GatewayClient(http, app.state.services.commands.requests)
