"""A workshop in this very process, on the real broker and database; and a customer who sends commands and reads what comes of them."""

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
from bus.worker.worker import run_worker
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
    """The real vLLM with a tiny Llama of random weights, for all tests that write; slow enough to be left in the middle of an answer."""
    find_vllm_python()
    folder = tmp_path_factory.mktemp("vllm")
    write_tiny_llama(folder / "tiny-llama", num_layers=8)
    with vllm_server(folder / "tiny-llama", folder / "log.txt") as running:
        yield running


@pytest.fixture
def start_worker(bus_settings: BusSettings, store_folder: Path) -> StartWorker:
    """`async with workshop(actor, …):` serves the actors."""

    def opened(*actors: Actor, settings: BusSettings = bus_settings, adapters: Any = ()) -> AbstractAsyncContextManager[None]:
        return run_worker(actors, adapters, settings, StoreSettings(store_url=store_folder.as_uri()))

    return opened


@pytest.fixture
async def broker_client(amqp_url: str) -> AsyncIterator[BrokerClient]:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        await purge_queues(connection)
        customer = BrokerClient(await connection.channel())
        queue = await customer.channel.declare_queue(exclusive=True)
        customer.reply_queue = queue.name

        async def take(message: AbstractIncomingMessage) -> None:
            customer.replies.put_nowait(message)

        await queue.consume(take, no_ack=True)
        yield customer
