"""Streams of responses whose gateway, broker connection or worker is lost in the middle: no delta comes twice, none is missing."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import openai
import pytest

from actors.engines.language.tiny_llama import write_tiny_llama
from bus.settings import BusSettings
from tests.support.broker_client import StartWorker, wait_until
from tests.support.gateway_process import GatewayProcess, open_gateway_process
from tests.support.live_gateway import live_gateway, official_client
from tests.support.response_workers import RESPONSE_ACTORS, purge_response_queues, use_engine, words
from tests.support.tcp_proxy import open_proxy
from tests.support.worker_processes import wait_until_ready

NUMBERS = " ".join(map(str, range(120)))
OfficialClient = Any
"""`AsyncOpenAI`. Its items are unions of dozens of types."""

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def purged_response_queues(amqp_url: str) -> None:
    await purge_response_queues(amqp_url)


class GatewayProcesses:
    """Gateways in processes of their own, each with a client."""

    def __init__(self, stack: AsyncExitStack, bus: BusSettings) -> None:
        self._stack, self._bus = stack, bus

    async def open(self) -> tuple[GatewayProcess, OfficialClient]:
        process = await self._stack.enter_async_context(open_gateway_process(self._bus))
        return process, await self._stack.enter_async_context(official_client(process.url))


async def read_events(stream: Any, characters: int) -> list[Any]:
    """Events until their deltas have so many characters. How many deltas these are depends on the machine."""
    events = []
    async for event in stream:
        events.append(event)
        if len(text_of(events)) >= characters:
            break
    return events


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def length_of(numbers: int) -> int:
    """Characters of so many of the first NUMBERS, with the space that follows each."""
    return sum(len(f"{number} ") for number in range(numbers))


def check_events(events: list[Any], whole_text: str) -> None:
    """The numbers have no gap, and the deltas make up the text of the final response."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert text_of(events) == whole_text
    assert events[-1].response.output_text == whole_text


async def test_stream_resumes_at_another_gateway(
    bus_settings: BusSettings, purged_response_queues: None, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gateways are killed with SIGKILL, one after the other; a third one sends the rest, from the events that the worker stored."""
    waits = {20: asyncio.Event(), 40: asyncio.Event()}
    use_engine(monkeypatch, lambda _: words(NUMBERS, pause=0.03, waits=waits))
    async with AsyncExitStack() as stack, start_worker(*RESPONSE_ACTORS):
        processes = GatewayProcesses(stack, bus_settings)
        gateways = await asyncio.gather(*(processes.open() for _ in range(3)))
        (first, client), (second, second_client), (_, third_client) = gateways
        stream = await client.responses.create(model="text", input="count", background=True, stream=True)
        events = await read_events(stream, length_of(20))
        response_id = events[0].response.id
        await first.kill()
        with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError, httpx.ReadError)):
            [event async for event in stream]
        waits[20].set()
        stream = await second_client.responses.retrieve(response_id, stream=True, starting_after=events[-1].sequence_number)
        resumed = await read_events(stream, length_of(40) - length_of(20))
        await second.kill()
        events += resumed
        assert (await third_client.responses.retrieve(response_id)).status == "in_progress", "the kill came too late"
        waits[40].set()
        rest = await third_client.responses.retrieve(response_id, stream=True, starting_after=events[-1].sequence_number)
        events += [event async for event in rest]
        stored = await third_client.responses.retrieve(response_id)
        replayed = [event async for event in await third_client.responses.retrieve(response_id, stream=True)]
    check_events(events, NUMBERS)
    assert (stored.output_text, stored.status) == (NUMBERS, "completed")
    assert replayed == events


async def test_response_of_killed_gateway_is_whole(
    bus_settings: BusSettings, purged_response_queues: None, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in the foreground, too, since its gateway could not cancel it."""
    killed = asyncio.Event()
    use_engine(monkeypatch, lambda _: words(NUMBERS, pause=0.03, waits={20: killed}))
    async with AsyncExitStack() as stack, start_worker(*RESPONSE_ACTORS):
        processes = GatewayProcesses(stack, bus_settings)
        (first, client), (_, other_client) = await asyncio.gather(processes.open(), processes.open())
        events = await read_events(await client.responses.create(model="text", input="count", stream=True), length_of(20))
        response_id = events[0].response.id
        await first.kill()
        assert (await other_client.responses.retrieve(response_id)).status == "in_progress", "the kill came too late"
        killed.set()
        rest = await other_client.responses.retrieve(response_id, stream=True, starting_after=events[-1].sequence_number)
        events += [event async for event in rest]
    check_events(events, NUMBERS)


async def test_stream_survives_lost_broker_connections(
    bus_settings: BusSettings, store_folder: Path, purged_response_queues: None, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the gateway, again and again; the client notices nothing."""
    waits = {15: asyncio.Event(), 40: asyncio.Event()}
    use_engine(monkeypatch, lambda _: words(NUMBERS, pause=0.03, waits=waits))
    parts = urlsplit(bus_settings.amqp_url.get_secret_value())
    async with open_proxy(parts.port or 5672) as proxy, start_worker(*RESPONSE_ACTORS):
        url = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")).geturl()
        settings = BusSettings.model_validate(bus_settings.model_dump() | {"amqp_url": url})
        async with live_gateway(settings, store_folder, question_seconds=2) as gateway_url, official_client(gateway_url) as client:
            events = []
            async for event in await client.responses.create(model="text", input="count", stream=True):
                events.append(event)
                for number, wait in waits.items():
                    if not wait.is_set() and len(text_of(events)) == length_of(number):
                        proxy.abort_connections()
                        wait.set()
    check_events(events, NUMBERS)


@asynccontextmanager
async def text_worker(bus: BusSettings, store: Path, model: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`atelier run text` with the embedded engine, in a process of its own. It is killed at the end."""
    assert bus.postgres_url is not None
    environment = os.environ | {
        "AMQP_URL": bus.amqp_url.get_secret_value(), "DATABASE_URL": bus.postgres_url, "STORE_URL": store.as_uri(),
        "VLLM_MODEL": str(model), "TEXT_THREADS": "1", "HEALTH_PORT": "0", "MAX_TOKENS_CAP": "400",
    }  # fmt: skip
    with TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "ops.cli", "run", "text", env=environment, stderr=log)
        try:
            await wait_until_ready(process, log, seconds=90)
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.mark.models
async def test_stream_continues_after_its_worker_was_killed(
    bus_settings: BusSettings, store_folder: Path, tmp_path: Path, purged_response_queues: None
) -> None:
    """Another worker writes the same text again, of which only what is missing is sent."""
    write_tiny_llama(tmp_path / "model", num_layers=8)
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^[a-z]{250}$"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    text_format: Any = {"format": {"type": "json_schema", "name": "letters", "schema": schema}}
    async with (
        text_worker(bus_settings, store_folder, tmp_path / "model") as worker,
        live_gateway(bus_settings, store_folder, request_seconds=200) as url,
        official_client(url) as client,
    ):
        request: Any = {"model": "text", "input": "write", "text": text_format, "temperature": 1.5}
        stream = await client.responses.create(**request, background=True, stream=True)
        events = await read_events(stream, 5)
        worker.kill()
        async with text_worker(bus_settings, store_folder, tmp_path / "model"):
            async for event in stream:
                events.append(event)
            text = events[-1].response.output_text
    connection = await asyncpg.connect(bus_settings.postgres_url)
    try:
        runs = await connection.fetchval("select runs from atelier.responses where response_id = $1", events[0].response.id)
    finally:
        await connection.close()
    assert runs == 2, "the kill came too late"
    assert len(text) > 250
    check_events(events, text)


async def test_response_without_a_worker_is_503(bus_settings: BusSettings, store_folder: Path, purged_response_queues: None) -> None:
    async with live_gateway(bus_settings, store_folder, question_seconds=0.5) as url, official_client(url) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.responses.create(model="text", input="x")
    assert raised.value.status_code == 503


async def test_expired_response_has_failed(
    bus_settings: BusSettings, store_folder: Path, purged_response_queues: None, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nobody could run it: after its deadline it has failed for whoever asks."""
    engine = use_engine(monkeypatch, lambda _: words(NUMBERS, pause=0.1))
    async with live_gateway(bus_settings, store_folder) as url, official_client(url) as client, start_worker(*RESPONSE_ACTORS):
        limit = {"X-Request-Timeout": "1.5"}
        response = await client.responses.create(model="text", input="x", background=True, extra_headers=limit)
        await wait_until(lambda: has_failed(client, response.id))
        failed = await client.responses.retrieve(response.id)
        events = [event async for event in await client.responses.retrieve(response.id, stream=True)]
        with pytest.raises(openai.InternalServerError, match="before its deadline"):
            await client.responses.create(model="text", input="x", extra_headers=limit)
    assert failed.error is not None
    assert "before its deadline" in failed.error.message
    assert failed.output_text.startswith("0 1 ")
    assert events[-1].type == "response.failed"
    assert engine.cancelled.is_set()


async def has_failed(client: OfficialClient, response_id: str) -> bool:
    return bool((await client.responses.retrieve(response_id)).status == "failed")
