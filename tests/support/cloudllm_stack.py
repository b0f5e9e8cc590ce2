"""The stack that stands in for a CloudLLM server: the text actor with its default engine, the conversations, and a gateway on a socket."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import httpx
import pytest

from actors import conversations, text
from actors.engines.language.tiny_llama import write_tiny_llama
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from tests.support.broker_client import purge_queues
from tests.support.live_gateway import live_gateway

MODEL = "tiny-model"
LOAD_SECONDS = 150


@asynccontextmanager
async def cloudllm_stack(folder: Path, amqp_url: str, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the gateway. The model is a small Llama of random weights without vision; `/health` says that it is loaded."""
    write_tiny_llama(folder / MODEL)
    (folder / "store").mkdir()
    bus = BusSettings.model_validate({"amqp_url": amqp_url, "database_url": database_url})
    store = StoreSettings(store_url=(folder / "store").as_uri())
    async with await aio_pika.connect(amqp_url) as connection:
        await purge_queues(connection)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_MODEL", str(folder / MODEL))
        worker = Worker((*text.ACTORS, *conversations.ACTORS), (), bus, store)
        async with (
            worker.run(),
            live_gateway(bus, folder / "store") as url,
            httpx.AsyncClient(base_url=url, timeout=240) as http,
        ):
            await wait_until_loaded(http)
            yield http


async def wait_until_loaded(http: httpx.AsyncClient) -> None:
    until = time.monotonic() + LOAD_SECONDS
    while not (await http.get("/health")).json()["model_loaded"]:
        assert time.monotonic() < until, "the model was not loaded in time"
        await asyncio.sleep(0.3)
