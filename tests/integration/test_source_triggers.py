"""A database with the source system's own tables and triggers: when its variants are done or failed, its job follows."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from actors import validate, variants
from actors.adapters.job_variants import build_pg_listener
from actors.settings import ListenerSettings
from bus.actor import Actor
from bus.settings import BusSettings
from tests.support.broker_client import StartWorker, wait_until
from tests.support.fake_openai_server import FakeOpenAiServer, open_fake_openai_server
from tests.support.source_system import draw_text_picture

TABLES = Path(__file__).with_name("source_triggers.sql")
LISTENER = build_pg_listener(ListenerSettings(reconnect_delay=0.1, sweep_seconds=60))
ACTORS: tuple[Actor, ...] = (validate.ACTOR, variants.ACTOR)
COLUMNS = """select table_name, column_name, data_type from information_schema.columns where table_schema = 'public' order by 1, 2"""
TRIGGERS = "select tgname from pg_trigger where not tgisinternal order by 1"


@dataclass
class TriggerDatabase:
    """The database of the source system, and the job states in its notifications."""

    bus: BusSettings
    connection: asyncpg.Connection
    notifications: list[tuple[str, str]] = field(default_factory=list)

    def on_notification(self, *arguments: Any) -> None:
        state = json.loads(arguments[3])
        self.notifications.append((state["current_step"], state["status"]))

    async def job(self, count: int) -> str:
        """Create a job with `count` variants whose pictures are being generated."""
        job = await self.connection.fetchval("insert into jobs (tenant_id) values ('tenant-1') returning job_id")
        picture = await self.connection.fetchval("insert into image_assets (image_url) values ('/assets/ad.png') returning image_asset_id")
        columns = "job_id, img_asset_id, creation_order, current_step, status"
        insert = f"insert into jobs_variants ({columns}) values ($1, $2, $3, 'img_gen', 'running')"
        await self.connection.executemany(insert, [(job, picture, number) for number in range(count)])
        return str(job)

    async def generated(self, job: str) -> None:
        await self.connection.execute("update jobs_variants set status = 'done', updated_at = now() where job_id = $1", job)

    async def state(self, job: str) -> tuple[str, str]:
        row = await self.connection.fetchrow("select current_step, status from jobs where job_id = $1", job)
        return row["current_step"], row["status"]


@pytest.fixture
async def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeOpenAiServer]:
    (tmp_path / "ad.png").write_bytes(draw_text_picture())
    async with open_fake_openai_server() as model:
        environment = {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second", "ASSETS_DIR": str(tmp_path)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield model


@pytest.fixture
async def source(bus_settings: BusSettings, model: FakeOpenAiServer) -> AsyncIterator[TriggerDatabase]:
    """A new database with the tables and triggers of the source system; dropped afterwards."""
    assert bus_settings.database_url
    url, name = bus_settings.database_url.get_secret_value(), f"source_{uuid4().hex[:8]}"
    server = await asyncpg.connect(url)
    await server.execute(f"create database {name}")
    connection = await asyncpg.connect(url, database=name)
    await connection.execute(TABLES.read_text())
    source_url = url.replace("/postgres", f"/{name}")
    assert source_url != url
    system = TriggerDatabase(bus_settings.model_copy(update={"database_url": SecretStr(source_url)}), connection)
    await connection.add_listener("job_state_changed", system.on_notification)
    yield system
    await connection.close()
    await server.execute(f"drop database {name} with (force)")
    await server.close()


async def test_job_is_done_when_its_last_variant_is(source: TriggerDatabase, start_worker: StartWorker) -> None:
    """All variants are done at once, when the trigger might miss the last one."""
    job = await source.job(6)
    before = [await source.connection.fetch(query) for query in (COLUMNS, TRIGGERS)]
    async with start_worker(*ACTORS, settings=source.bus, adapters=[LISTENER]):
        await source.generated(job)

        async def rolled_up() -> bool:
            return await source.state(job) == ("vlm_analyze", "done")

        await wait_until(rolled_up, 20)
        await asyncio.sleep(0.1)
    assert source.notifications[-1] == ("vlm_analyze", "done")
    assert source.notifications.count(("vlm_analyze", "done")) == 1
    assert set(source.notifications) <= {("vlm_analyze", "running"), ("vlm_analyze", "done")}
    assert await source.connection.fetchval("select count(*) from vlm_traces where job_id = $1", job) == 6
    assert [await source.connection.fetch(query) for query in (COLUMNS, TRIGGERS)] == before, "the schema of the source system is unchanged"


async def test_job_fails_with_its_variants(source: TriggerDatabase, start_worker: StartWorker, model: FakeOpenAiServer) -> None:
    """The model never returns a verdict: each variant fails after its last attempt, and the job with the last of them."""
    model.respond = lambda _: "I would rather write a poem."
    job = await source.job(3)
    async with start_worker(*ACTORS, settings=source.bus, adapters=[LISTENER]):
        await source.generated(job)

        async def rolled_up() -> bool:
            return await source.state(job) == ("vlm_analyze", "failed")

        await wait_until(rolled_up, 20)
    assert source.notifications[-1] == ("vlm_analyze", "failed")
    assert await source.connection.fetchval("select count(*) from vlm_traces where job_id = $1", job) == 0
