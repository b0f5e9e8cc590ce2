"""A complete installation in a thread: the given actors, those without a model, dead-letter ingest, and the gateway on a free port."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field

import uvicorn

from actors import dead_letters, ledger
from actors.upload import ACTOR as UPLOAD
from actors.watermark import ACTOR as WATERMARK
from bus.actor import Actor
from bus.dead_letters.ingest import DeadLetterIngest
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts.broker_names import dead_letter_queue
from contracts.wire import Step
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.support.fake_text_actor import FakeTextActor

BASE_ACTORS: tuple[Actor, ...] = (*ledger.ACTORS, *dead_letters.ACTORS, WATERMARK, UPLOAD)
START_SECONDS = 180.0


@dataclass
class ConsoleServer:
    bus: BusSettings
    store: StoreSettings
    settings: GatewaySettings
    actors: Sequence[Actor]
    url: str = ""
    error: BaseException | None = None
    _ready: threading.Event = field(default_factory=threading.Event)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def wait_until_ready(self) -> None:
        if not self._ready.wait(START_SECONDS) or self.error:
            raise RuntimeError("the console server did not start") from self.error

    def stop(self) -> None:
        if self._loop and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        dead_letter_queues = tuple(dead_letter_queue(actor.step) for actor in self.actors if not actor.is_query and actor.emit_events)
        async with AsyncExitStack() as stack:
            text = () if any(actor.step == Step.TEXT for actor in self.actors) else FakeTextActor().actors
            ingest = DeadLetterIngest("ingest", dead_letter_queues, ())
            await stack.enter_async_context(Worker([*BASE_ACTORS, *text, *self.actors], (), self.bus, self.store, (ingest,)).run())
            app = create_app(self.bus, self.settings, self.store)
            server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=1))
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.02)
            self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/console"
            self._ready.set()
            await self._stop.wait()
            server.should_exit = True
            await serving


@contextmanager
def open_console_server(bus: BusSettings, store: StoreSettings, settings: GatewaySettings, *actors: Actor) -> Iterator[ConsoleServer]:
    console_server = ConsoleServer(bus, store, settings, actors)
    thread = threading.Thread(target=console_server.run, name="console-server")
    thread.start()
    try:
        console_server.wait_until_ready()
        yield console_server
    finally:
        console_server.stop()
        thread.join(30)
