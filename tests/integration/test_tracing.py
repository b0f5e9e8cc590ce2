"""One job is one trace: from the gateway through actors in processes of their own, exported to a real OTLP receiver."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from actors.adapters.image_generation import build_adapter
from bus.observability.settings import TracingSettings
from bus.observability.tracing import open_tracing
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from contracts import broker_names
from gateway.app import create_app
from gateway.settings import GatewaySettings
from ops.local.daemon import free_ports
from ops.supervisor import open_supervisor
from tests.support.broker_client import BrokerClient, StartWorker
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.otlp_collector import OtlpCollector, RecordedSpan, open_collector

ROOT = Path(__file__).parents[2]
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ORDER = {"kind": "image_order", "prompt": "harbour", "seed": 42, "width": 128, "height": 128, "artist": "Jane Doe"}


def tracing_settings(collector: OtlpCollector) -> TracingSettings:
    return TracingSettings(exporter_otlp_endpoint=collector.url)


def processed(step: str) -> str:
    """The name of the span of a step: exchange, routing key and queue."""
    return f"process atelier.commands:{step}:atelier.{step}"


def assert_connected(spans: list[RecordedSpan], root: str) -> None:
    """The parent of every span is another span of the trace, or the client's."""
    ids = {span.id for span in spans} | {root}
    assert [span for span in spans if span.parent not in ids] == []


@pytest.mark.usefixtures("purged_queues")
async def test_job_over_three_processes_is_one_trace(bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker) -> None:
    assert bus_settings.database_url
    store = StoreSettings(store_url=store_folder.as_uri())
    with open_collector() as collector:
        environment = os.environ | {
            "AMQP_URL": bus_settings.amqp_url.get_secret_value(),
            "DATABASE_URL": bus_settings.database_url.get_secret_value(),
            "STORE_URL": store.store_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        }
        app = create_app(bus_settings, GatewaySettings(), store)
        with open_tracing("gateway-test", tracing_settings(collector)):
            async with (
                open_supervisor(["watermark", "upload"], environment, lambda step, line: None) as supervisor,
                start_worker(FAKE_IMAGE_ACTOR),
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60) as http,
            ):
                await supervisor.wait_until_ready(timeout_seconds=60)
                response = await http.post("/jobs?wait=30", json=ORDER, headers={"traceparent": CLIENT})
                assert response.status_code == 200, response.text

    _, trace, caller, _ = CLIENT.split("-")
    spans = [span for span in collector.spans if span.trace == trace]
    by_name = {span.name: span for span in spans}
    assert {"POST /jobs", "wait atelier.image", *map(processed, ("image", "watermark", "upload"))} <= by_name.keys()
    assert {by_name[processed(step)].service for step in ("watermark", "upload")} == {"atelier-watermark", "atelier-upload"}
    assert {"publish atelier.commands:watermark", "publish atelier.events:{routing_key}"} <= by_name.keys()
    assert_connected(spans, caller)
    assert by_name["POST /jobs"].parent == caller
    assert by_name["POST /jobs"].attributes["http.response.status_code"] == 200
    assert by_name[processed("watermark")].parent == by_name[processed("image")].id
    assert by_name[processed("upload")].attributes["atelier.outcome"] == "done"
    assert len({span.attributes["messaging.message.conversation_id"] for span in spans if span.name.startswith("process")}) == 1


async def test_foreign_order_starts_trace_and_dead_letter_marks_error(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    body = {"type": "image_generation", "data": {"generation_id": 4711, "prompt": "fails", "aspect_ratio": "1:1"}}
    with open_collector() as collector, open_tracing("bench", tracing_settings(collector)):
        async with start_worker(FAKE_IMAGE_ACTOR, adapters=[build_adapter()]):
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, body, exchange="")
            dead = await broker_client.take_message(broker_names.dead_letter_queue("image"))
        traceparent = str((dead.headers or {})["traceparent"])
    [translated] = [span for span in collector.spans if span.attributes.get("atelier.step") == "image_generation"]
    [failed] = [span for span in collector.spans if span.name == processed("image")]
    assert translated.parent == ""
    assert (failed.trace, failed.parent) == (translated.trace, translated.id)
    assert (failed.failed, failed.attributes["error.type"]) == (True, "lora-missing")
    assert traceparent.split("-")[1:3] == [failed.trace, failed.id]


async def test_tracing_is_not_imported_without_endpoint(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    code = "import sys, bus.worker.worker, gateway.app; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    body = {"type": "image_generation", "data": {"generation_id": 4712, "prompt": "fails", "aspect_ratio": "1:1"}}
    with open_tracing("bench", TracingSettings(exporter_otlp_endpoint=None)):
        async with start_worker(FAKE_IMAGE_ACTOR, adapters=[build_adapter()]):
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, body, exchange="")
            dead = await broker_client.take_message(broker_names.dead_letter_queue("image"))
    assert "traceparent" not in (dead.headers or {})


async def test_unavailable_collector_does_not_delay_jobs(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    unreachable = TracingSettings(exporter_otlp_endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    body = {"type": "image_generation", "data": {"generation_id": 4713, "prompt": "fails", "aspect_ratio": "1:1"}}

    async def order() -> None:
        async with start_worker(FAKE_IMAGE_ACTOR, adapters=[build_adapter()]):
            await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, body, exchange="")
            await broker_client.take_message(broker_names.dead_letter_queue("image"), seconds=5)

    with open_tracing("bench", unreachable):
        await asyncio.wait_for(order(), 20)
        started = time.monotonic()
    assert time.monotonic() - started < 10
