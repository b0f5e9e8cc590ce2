"""This bus, with its own worker and its own client: everything that an actor has but the events about its work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from bus.actor import Actor, Context, Handler, Tools
from bus.letters import command_letter
from bus.logs import open_logs
from bus.outbox import Outbox, open_outbox
from bus.request_reply import Requests, open_requests
from bus.serve import open_workshop
from bus.store_settings import StoreSettings
from contracts.carried import Carried
from contracts.wire import Result
from ops.bench.peers.run import Done, Place, Run, side_by_side

SECONDS = 600.0


class Padded(Carried):
    run: str
    of: int
    pad: str


class Answer(Result):
    pad: str


@asynccontextmanager
async def open_echo(_: Tools) -> AsyncIterator[Handler]:
    done = Done()

    async def echo(command: Padded, _: Context) -> Answer:
        done.one(command.run, command.of)
        return Answer(pad=command.pad if not command.of else "")

    yield echo


@asynccontextmanager
async def open_worker(place: Place) -> AsyncIterator[None]:
    open_logs("WARNING")
    kept = place.database_url is not None
    actor = Actor(place.queue, Padded, Answer, open_echo, SECONDS, place.in_flight, remembers=kept, announces=False)
    async with open_workshop([actor], [], place.settings, StoreSettings(store_url=place.store_url)):
        yield


class Sender:
    def __init__(self, step: str, outbox: Outbox, requests: Requests) -> None:
        self._step, self._outbox, self._requests = step, outbox, requests

    async def send(self, run: Run) -> None:
        async def once() -> None:
            name = str(uuid4())
            await self._outbox.post(command_letter(self._step, run.body, message_id=name, job_id=name, headers={}))

        await side_by_side(run, once)

    async def ask(self, run: Run) -> None:
        await side_by_side(run, lambda: self._requests.request(self._step, run.body, seconds=SECONDS))


@asynccontextmanager
async def open_sender(place: Place) -> AsyncIterator[Sender]:
    open_logs("WARNING")
    async with open_outbox(place.settings) as outbox, open_requests(outbox) as requests:
        yield Sender(place.queue, outbox, requests)
