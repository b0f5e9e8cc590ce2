"""This bus, with its own worker and request client: all that an actor has, but for the events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from benchmarks.peers.workload import CompletionCounter, PeerConfig, Workload, run_concurrently
from bus.actor import Actor, Context, Handler, Resources
from bus.amqp.messages import build_command
from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.request_reply import RequestClient, open_request_client
from bus.observability.logs import configure_logging
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts.wire import Result
from contracts.wire_model import WireModel

TIMEOUT_SECONDS = 600.0


class PaddedCommand(WireModel):
    run: str
    of: int
    pad: str


class PaddedResult(Result):
    pad: str


@asynccontextmanager
async def open_echo(_: Resources) -> AsyncIterator[Handler]:
    done = CompletionCounter()

    async def echo(command: PaddedCommand, _: Context) -> PaddedResult:
        done.record(command.run, command.of)
        return PaddedResult(pad=command.pad if not command.of else "")

    yield echo


@asynccontextmanager
async def open_worker(config: PeerConfig) -> AsyncIterator[None]:
    configure_logging("WARNING")
    deduplicate = config.database_url is not None
    actor = Actor(
        config.queue, PaddedCommand, PaddedResult, open_echo, TIMEOUT_SECONDS, config.in_flight, deduplicate=deduplicate, emit_events=False
    )
    async with Worker([actor], [], config.settings, StoreSettings(store_url=config.store_url)).run():
        yield


class PeerSender:
    def __init__(self, step: str, publisher: Publisher, requests: RequestClient) -> None:
        self._step, self._publisher, self._requests = step, publisher, requests

    async def send(self, run: Workload) -> None:
        async def once() -> None:
            message_id = str(uuid4())
            await self._publisher.publish(build_command(self._step, run.body, message_id=message_id, job_id=message_id, headers={}))

        await run_concurrently(run, once)

    async def ask(self, run: Workload) -> None:
        await run_concurrently(run, lambda: self._requests.request(self._step, run.body, seconds=TIMEOUT_SECONDS))


@asynccontextmanager
async def open_sender(config: PeerConfig) -> AsyncIterator[PeerSender]:
    configure_logging("WARNING")
    async with open_publisher(config.settings) as publisher, open_request_client(publisher) as requests:
        yield PeerSender(config.queue, publisher, requests)
