"""Health with real dependencies that fail one by one: readiness becomes false with a reason, then true again."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError, TemporaryError
from bus.observability.settings import HealthSettings
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from ops.local.daemon import free_ports
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from tests.support.broker_client import BrokerClient, Echo, Echoed, echo_actor, wait_until

FAST_HEALTH = HealthSettings(port=0, check_seconds=2, keep_seconds=0)


async def echo(command: Echo, context: Context) -> Echoed:
    if command.text == "permanent":
        raise PermanentError("no-such-text", "send another")
    if command.text == "temporary" and context.attempt == 1:
        raise TemporaryError("not yet", delay=0.1)
    return Echoed(text=command.text)


class HealthPages:
    """A client of the health server."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        response = await self._http.get(path)
        return response.status_code, response.json()

    async def wait_until_ready_is(self, ready: bool, seconds: float = 30) -> list[str]:
        """Wait for this readiness; returns the reasons."""
        async with asyncio.timeout(seconds):
            while True:
                status, body = await self.get("/health/ready")
                assert (status == 200) == body["ready"] == (not body["reasons"])
                if body["ready"] is ready:
                    return list(body["reasons"])
                await asyncio.sleep(0.05)

    async def samples(self) -> dict[tuple[str, ...], float]:
        """Every sample by its name and label values, the labels in alphabetical order."""
        text = (await self._http.get("/metrics")).text
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@asynccontextmanager
async def serve_actor(actor: Actor, settings: BusSettings, store: Path, health: HealthSettings = FAST_HEALTH) -> AsyncIterator[HealthPages]:
    async with Worker([actor], [], settings, StoreSettings(store_url=store.as_uri()), (), health).run() as url:
        assert url
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:
            yield HealthPages(http)


@pytest.mark.usefixtures("purged_queues")
async def test_all_probes_pass_when_dependencies_are_up(bus_settings: BusSettings, store_folder: Path) -> None:
    actor = echo_actor(echo)
    async with serve_actor(actor, bus_settings, store_folder) as page:
        assert await page.get("/health/live") == (200, {"live": True})
        assert await page.get("/health/startup") == (200, {"started": True})
        status, body = await page.get("/health/ready")
        assert (status, body["reasons"]) == (200, [])
        assert body["parts"] == dict.fromkeys(["broker", "store", "database", f"queue:{actor.step}"], "ok")
        assert (await page.get("/nothing"))[0] == 404


async def test_no_health_server_without_port(bus_settings: BusSettings, store_folder: Path) -> None:
    store = StoreSettings(store_url=store_folder.as_uri())
    async with Worker([echo_actor(echo)], [], bus_settings, store, (), HealthSettings(port=None)).run() as url:
        assert url is None


async def test_port_in_use_is_reported(bus_settings: BusSettings, store_folder: Path) -> None:
    async with serve_actor(echo_actor(echo), bus_settings, store_folder) as page:
        port = httpx.URL(page._http.base_url).port
        with pytest.raises(OSError, match=f"HEALTH_PORT={port}"):
            async with serve_actor(echo_actor(echo), bus_settings, store_folder, HealthSettings(port=port)):
                pass


async def test_starting_process_is_live_but_not_ready(bus_settings: BusSettings, store_folder: Path) -> None:
    may_open = asyncio.Event()

    @asynccontextmanager
    async def open_late(resources: Resources) -> AsyncIterator[Handler]:
        await may_open.wait()
        yield echo

    actor = Actor(step="late", command=Echo, result=Echoed, open=open_late, timeout_seconds=5, prefetch=1)
    port = free_ports(1)[0]

    async def serve() -> None:
        async with serve_actor(actor, bus_settings, store_folder, HealthSettings(port=port, keep_seconds=0)):
            await asyncio.sleep(30)

    serving = asyncio.create_task(serve())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=httpx.AsyncHTTPTransport(retries=5)) as http:
        page = HealthPages(http)
        assert (await page.get("/health/live"))[0] == 200
        assert (await page.get("/health/startup"))[0] == 503
        assert "starting" in (await page.wait_until_ready_is(ready=False))[0]
        may_open.set()
        await page.wait_until_ready_is(ready=True)
        assert (await page.get("/health/startup"))[0] == 200
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_readiness_follows_broker_outage(bus_settings: BusSettings, store_folder: Path, rabbitmq: RabbitNode) -> None:
    async with serve_actor(echo_actor(echo), bus_settings, store_folder) as page:
        rabbitmq.kill()
        try:
            reasons = await page.wait_until_ready_is(ready=False)
            assert any(reason.startswith("broker: not connected") for reason in reasons)
            assert (await page.get("/health/live"))[0] == 200
        finally:
            await asyncio.to_thread(rabbitmq.start)
        await page.wait_until_ready_is(ready=True)


async def test_readiness_follows_database_outage(bus_settings: BusSettings, store_folder: Path, postgres: EmbeddedPostgres) -> None:
    async with serve_actor(echo_actor(echo), bus_settings, store_folder) as page:
        postgres.kill()
        try:
            assert [reason for reason in await page.wait_until_ready_is(ready=False) if reason.startswith("database: ")]
        finally:
            await asyncio.to_thread(postgres.start)
        await page.wait_until_ready_is(ready=True)


async def test_readiness_follows_store_outage(bus_settings: BusSettings, store_folder: Path) -> None:
    async with serve_actor(echo_actor(echo), bus_settings, store_folder) as page:
        shutil.rmtree(store_folder)
        store_folder.write_text("a file where the folder was")
        reasons = await page.wait_until_ready_is(ready=False)
        assert reasons[0].startswith("store: the store's folder")
        store_folder.unlink()
        await page.wait_until_ready_is(ready=True)


async def test_deleted_queue_is_reported_and_consumer_recovers(
    bus_settings: BusSettings, store_folder: Path, broker_client: BrokerClient
) -> None:
    actor = echo_actor(echo)
    async with serve_actor(actor, bus_settings, store_folder) as page:
        await (await broker_client.channel.get_queue(actor.queue)).delete(if_unused=False, if_empty=False)
        assert [reason for reason in await page.wait_until_ready_is(ready=False) if reason.startswith(f"queue:{actor.step}: ")]
        await page.wait_until_ready_is(ready=True)
        await broker_client.publish(actor.step, {"text": "hello"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1]["text"] == "hello"


async def test_actor_with_unavailable_engine_is_not_ready(bus_settings: BusSettings, store_folder: Path) -> None:
    engine = FakeEngine()

    @asynccontextmanager
    async def open_engine(resources: Resources) -> AsyncIterator[Handler]:
        resources.register_engine(engine)
        yield echo

    actor = Actor(step="with-engine", command=Echo, result=Echoed, open=open_engine, timeout_seconds=5, prefetch=1)
    async with serve_actor(actor, bus_settings, store_folder) as page:
        assert await page.wait_until_ready_is(ready=False) == ["engine:with-engine: the model process is starting"]
        engine.reason = None
        await page.wait_until_ready_is(ready=True)
        samples = await page.samples()
        assert samples["atelier_engine_steps_total", "with-engine"] == 40
        assert samples["atelier_engine_deaths_total", "hang", "with-engine"] == 2
        assert samples["atelier_engine_steps_per_second", "with-engine"] == 7.5


class FakeEngine:
    reason: str | None = "the model process is starting"

    async def unavailable_reason(self) -> str | None:
        return self.reason

    def snapshot(self) -> dict[str, Any]:
        return {"engine_steps_total": 40, "engine_deaths_total": {"hang": 2}, "engine_steps_per_second": 7.5}


async def test_deliveries_are_counted_by_outcome(bus_settings: BusSettings, store_folder: Path, broker_client: BrokerClient) -> None:
    actor = echo_actor(echo)
    step = actor.step
    async with serve_actor(actor, bus_settings, store_folder) as page:
        for text in ("fine", "fine again", "temporary", "permanent"):
            await broker_client.publish(step, {"text": text}, reply_to=broker_client.reply_queue, timestamp=0)
            await broker_client.next_reply()

        async def counted() -> bool:
            return (await page.samples()).get(("atelier_deliveries_total", "no-such-text", "dead", step)) == 1

        await wait_until(counted)
        samples = await page.samples()
    assert samples["atelier_deliveries_total", "", "done", step] == 3
    assert (
        samples["atelier_deliveries_total", "temporary", "retry", step] == samples["atelier_orders_total", "temporary", "retry", step] == 1
    )
    assert samples["atelier_dead_letters_total", "no-such-text", step] == 1
    assert samples["atelier_step_seconds_count", step] == 5
    assert samples["atelier_attempts_sum", step] == 6
    assert samples["atelier_queue_wait_seconds_count", step] == 4
    assert samples["atelier_in_hand", step] == 0
    assert samples["atelier_ready",] == 1
    assert samples["atelier_part_ready", f"queue:{step}"] == 1


@pytest.mark.usefixtures("purged_queues")
async def test_paused_actor_is_not_ready_despite_other_consumers(bus_settings: BusSettings, store_folder: Path) -> None:
    opened_resources: list[Resources] = []

    @asynccontextmanager
    async def open_pausable(resources: Resources) -> AsyncIterator[Handler]:
        opened_resources.append(resources)
        yield echo

    actor = Actor(step="paused", command=Echo, result=Echoed, open=open_pausable, timeout_seconds=5, prefetch=1)
    async with serve_actor(actor, bus_settings, store_folder) as page, serve_actor(actor, bus_settings, store_folder) as other_page:
        opened_resources[0].set_unready("the model does not load")
        assert await page.wait_until_ready_is(ready=False) == ["queue:paused: atelier.paused is not consumed: the model does not load"]
        await other_page.wait_until_ready_is(ready=True)
        opened_resources[0].set_unready(None)
        await page.wait_until_ready_is(ready=True)
