"""Fixtures of the integration tests: a worker in this process on the real broker and database, a broker client, a vLLM server."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from actors.engines.language.tiny_llama import write_tiny_llama
from bus.actor import Actor
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from tests.support.broker_client import BrokerClient, StartWorker, purge_queues
from tests.support.external_programs import VllmServer, find_vllm_python, vllm_server


@pytest.fixture
def bus_settings(amqp_url: str, database_url: str) -> BusSettings:
    return BusSettings.model_validate(
        {
            "amqp_url": amqp_url,
            "database_url": database_url,
            "retry_delays_seconds": (0.1, 0.2),
            "long_delays_seconds": (0.5,),
            "publish_timeout_seconds": 5.0,
            "grace_seconds": 5.0,
        }
    )


@pytest.fixture(scope="session")
def running_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The real vLLM with a tiny Llama of random weights, slow enough to be interrupted in the middle of a generation."""
    find_vllm_python()
    folder = tmp_path_factory.mktemp("vllm")
    write_tiny_llama(folder / "tiny-llama", num_layers=8)
    with vllm_server(folder / "tiny-llama", folder / "log.txt") as server:
        yield server


@pytest.fixture
def start_worker(bus_settings: BusSettings, store_folder: Path) -> StartWorker:
    """`async with start_worker(actor, …):` serves the actors."""

    def start(*actors: Actor, settings: BusSettings = bus_settings, adapters: Any = ()) -> AbstractAsyncContextManager[str | None]:
        return Worker(actors, adapters, settings, StoreSettings(store_url=store_folder.as_uri())).run()

    return start


@pytest.fixture
async def purged_queues(amqp_url: str) -> None:
    """The queues that all tests share are empty."""
    async with await aio_pika.connect(amqp_url) as connection:
        await purge_queues(connection)


@pytest.fixture
async def broker_client(amqp_url: str, purged_queues: None) -> AsyncIterator[BrokerClient]:
    async with await aio_pika.connect(amqp_url) as connection:
        client = BrokerClient(await connection.channel())
        queue = await client.channel.declare_queue(exclusive=True)
        client.reply_queue = queue.name

        async def on_reply(message: AbstractIncomingMessage) -> None:
            client.replies.put_nowait(message)

        await queue.consume(on_reply, no_ack=True)
        yield client
