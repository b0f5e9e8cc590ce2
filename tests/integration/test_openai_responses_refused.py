"""Responses that cannot be generated: each has its cause, and ends as soon as it is certain."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from PIL import Image

from actors import responses
from bus.errors import TemporaryError
from bus.settings import BusSettings
from contracts.responses import GetResponse
from tests.support.broker_client import StartWorker, wait_until
from tests.support.live_gateway import live_gateway, official_client
from tests.support.response_workers import RESPONSE_ACTORS, purge_response_queues, use_engine, words
from tests.support.tcp_proxy import open_proxy

OfficialClient = Any
"""`AsyncOpenAI`. Its items are unions of dozens of types."""
AWAY = TemporaryError("the model's server is away", code="server-away")


@pytest.fixture
async def client(bus_settings: BusSettings, store_folder: Path, amqp_url: str) -> AsyncIterator[OfficialClient]:
    await purge_response_queues(amqp_url)
    async with live_gateway(bus_settings, store_folder, request_seconds=20) as url, official_client(url) as client:
        yield client


@pytest.mark.parametrize(("delays", "limit"), [((0.1,), 20), ((60.0, 60.0), 10)], ids=["no attempt is left", "deadline"])
async def test_response_ends_when_no_attempt_follows(
    delays: tuple[float, ...],
    limit: int,
    client: OfficialClient,
    bus_settings: BusSettings,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once, with its cause, and not at its deadline."""
    use_engine(monkeypatch, lambda _: [AWAY])
    settings = BusSettings.model_validate(bus_settings.model_dump() | {"retry_delays_seconds": delays})
    header = {"X-Request-Timeout": str(limit)}
    async with start_worker(*RESPONSE_ACTORS, settings=settings), asyncio.timeout(9):
        with pytest.raises(openai.InternalServerError, match="server is away") as raised:
            await client.responses.create(model="text", input="x", extra_headers=header)
        stream = await client.responses.create(model="text", input="x", background=True, stream=True, extra_headers=header)
        events = [event async for event in stream]
    assert (raised.value.status_code, raised.value.code) == (503, "server_away")
    assert (events[-1].type, events[-1].response.error.message) == ("response.failed", "the model's server is away")


async def test_wait_survives_lost_database(
    client: OfficialClient, bus_settings: BusSettings, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than one query waits: a request in the foreground gets its answer, and is not cancelled."""
    engine = use_engine(monkeypatch, lambda _: words("one two three", pause=0.3))

    async def has_begun() -> bool:
        return bool(engine.requests)

    assert bus_settings.postgres_url is not None
    parts = urlsplit(bus_settings.postgres_url)
    async with open_proxy(parts.port or 5432) as proxy:
        url = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")).geturl()
        settings = BusSettings.model_validate(bus_settings.model_dump() | {"database_url": url})
        async with start_worker(*RESPONSE_ACTORS, settings=settings):
            waiting = asyncio.create_task(client.responses.create(model="text", input="x"))
            await wait_until(has_begun)
            port, proxy.target = proxy.target, 1
            proxy.abort_connections()
            with pytest.raises(openai.InternalServerError) as raised:
                await client.responses.retrieve(f"resp_{'0' * 32}")
            await asyncio.sleep(5)
            proxy.target = port
            response = await asyncio.wait_for(waiting, 15)
    assert (raised.value.status_code, raised.value.code, raised.value.response.headers["Retry-After"]) == (503, "database_away", "5")
    assert (response.status, response.output_text) == ("completed", "one two three")


async def test_query_repeats_what_the_database_could_not_answer() -> None:
    """Within the time that its caller waits, of which less is left each time."""
    asked: list[float] = []

    async def answer(command: GetResponse) -> Any:
        asked.append(command.wait_seconds)
        if len(asked) < 3:
            raise ConnectionResetError
        return "answer"

    assert await responses.answer_while_away(answer, GetResponse(response_id="r", wait_seconds=4)) == "answer"
    assert asked[0] == 4 > asked[1] > asked[2] > 3


async def test_input_that_the_text_step_refuses_is_refused_at_once(
    client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored or generated."""
    engine = use_engine(monkeypatch, lambda _: words("fine"))
    call = {"type": "function_call", "name": "weather", "arguments": "{}"}
    message = {"role": "user", "id": "msg_1", "content": "x"}
    async with start_worker(*RESPONSE_ACTORS):
        for given, reason in (
            ([call | {"call_id": f"call_{number}"} for number in range(129)], "at most 128 items"),
            ([message, message], "Duplicate item found with id 'msg_1'"),
        ):
            with pytest.raises(openai.BadRequestError, match=reason) as raised:
                await client.responses.create(model="text", input=given)
            assert raised.value.param == "input"
    assert engine.requests == []


async def test_listed_items_can_be_sent_back(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with a picture, too, whose bytes are not listed."""
    engine = use_engine(monkeypatch, lambda _: words("a red square"))
    with io.BytesIO() as file:
        Image.new("RGB", (40, 40), "red").save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": url}]
    async with start_worker(*RESPONSE_ACTORS):
        first = await client.responses.create(model="text", input=[{"role": "user", "content": content}])
        (item,) = [item async for item in client.responses.input_items.list(first.id)]
        await client.responses.create(
            model="text", input=[item.model_dump(), first.output[0].model_dump(), {"role": "user", "content": "?"}]
        )
    assert item.content[1].image_url is None
    assert engine.requests[1].messages[0] == engine.requests[0].messages[0]


async def test_without_database_the_setting_is_named(
    client: OfficialClient, bus_settings: BusSettings, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_engine(monkeypatch, lambda _: words("fine"))
    settings = BusSettings.model_validate(bus_settings.model_dump() | {"database_url": None})
    async with start_worker(*RESPONSE_ACTORS, settings=settings):
        with pytest.raises(openai.InternalServerError, match="set DATABASE_URL") as raised:
            await client.responses.create(model="text", input="x", store=False)
    assert raised.value.status_code == 501
