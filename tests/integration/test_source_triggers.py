"""In a database with the source system's own tables and triggers: when we set its variants done, its job becomes done, too."""

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
from actors.adapters.job_variants import ListenerSettings, trigger
from bus.actor import Actor
from bus.settings import BusSettings
from tests.integration.conftest import Workshop, soon
from tests.integration.seeing import lettered
from tests.model_server import ModelServer, open_model_server

TABLES = Path(__file__).with_name("source_triggers.sql")
LISTENER = trigger(ListenerSettings(reconnect_delay=0.1, sweep_seconds=60))
ACTORS: tuple[Actor, ...] = (validate.ACTOR, variants.ACTOR)
COLUMNS = """select table_name, column_name, data_type from information_schema.columns where table_schema = 'public' order by 1, 2"""
TRIGGERS = "select tgname from pg_trigger where not tgisinternal order by 1"


@dataclass
class SourceSystem:
    """Its database, and the states of its jobs that it has told."""

    bus: BusSettings
    connection: asyncpg.Connection
    told: list[tuple[str, str]] = field(default_factory=list)

    def hear(self, *said: Any) -> None:
        state = json.loads(said[3])
        self.told.append((state["current_step"], state["status"]))

    async def job(self, count: int) -> str:
        """A job with so many variants whose pictures are being generated."""
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
async def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[ModelServer]:
    (tmp_path / "ad.png").write_bytes(lettered())
    async with open_model_server() as model:
        told = {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second", "ASSETS_DIR": str(tmp_path)}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        yield model


@pytest.fixture
async def source(bus_settings: BusSettings, model: ModelServer) -> AsyncIterator[SourceSystem]:
    """A database of its own."""
    assert bus_settings.database_url
    url, name = bus_settings.database_url.get_secret_value(), f"source_{uuid4().hex[:8]}"
    server = await asyncpg.connect(url)
    await server.execute(f"create database {name}")
    connection = await asyncpg.connect(url, database=name)
    await connection.execute(TABLES.read_text())
    theirs = url.replace("/postgres", f"/{name}")
    assert theirs != url
    system = SourceSystem(bus_settings.model_copy(update={"database_url": SecretStr(theirs)}), connection)
    await connection.add_listener("job_state_changed", system.hear)
    yield system
    await connection.close()
    await server.execute(f"drop database {name} with (force)")
    await server.close()


async def test_a_job_is_done_when_the_last_of_its_variants_is(source: SourceSystem, workshop: Workshop) -> None:
    """All are done at once, which is when its trigger could miss that one was the last."""
    job = await source.job(6)
    before = [await source.connection.fetch(query) for query in (COLUMNS, TRIGGERS)]
    async with workshop(*ACTORS, settings=source.bus, adapters=[LISTENER]):
        await source.generated(job)

        async def rolled_up() -> bool:
            return await source.state(job) == ("vlm_analyze", "done")

        await soon(rolled_up, 20)
        await asyncio.sleep(0.1)
    assert source.told[-1] == ("vlm_analyze", "done")
    assert source.told.count(("vlm_analyze", "done")) == 1
    assert set(source.told) <= {("vlm_analyze", "running"), ("vlm_analyze", "done")}
    assert await source.connection.fetchval("select count(*) from vlm_traces where job_id = $1", job) == 6
    assert [await source.connection.fetch(query) for query in (COLUMNS, TRIGGERS)] == before, "nothing of theirs is altered"


async def test_a_job_fails_with_its_variants(source: SourceSystem, workshop: Workshop, model: ModelServer) -> None:
    """Whatever the model says, it is no verdict: each variant fails after its last attempt, and the job with the last of them."""
    model.say = lambda _: "I would rather write a poem."
    job = await source.job(3)
    async with workshop(*ACTORS, settings=source.bus, adapters=[LISTENER]):
        await source.generated(job)

        async def rolled_up() -> bool:
            return await source.state(job) == ("vlm_analyze", "failed")

        await soon(rolled_up, 20)
    assert source.told[-1] == ("vlm_analyze", "failed")
    assert await source.connection.fetchval("select count(*) from vlm_traces where job_id = $1", job) == 0
