"""Who sees: one executor of this process, shared by every actor with the same settings, or a server. Opened once however many ask."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from actors.engines.executor import Executor, Unready, open_executor
from actors.engines.openai_http import OpenAiServer, open_server
from actors.engines.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from actors.engines.vlm import Answer, Question
from actors.seeing.model_files import local_model
from actors.seeing.settings import VlmSettings
from bus.actor import Engine

PLACES = 64
"""Questions in hand at once, of all actors together. Their prefetch decides; this is only the end of it."""

log = structlog.get_logger()


class Sight(Protocol):
    async def look(self, question: Question, *, tenant: str | None, deadline: datetime | None) -> Answer:
        """Raises PermanentError, TemporaryError, EngineDead."""
        ...

    async def ready(self) -> str:
        """Wait until questions can be answered; the model's name."""
        ...

    @property
    def engine(self) -> Engine: ...


@dataclass(frozen=True)
class OwnSight:
    """The transformers engine in its process."""

    executor: Executor

    async def look(self, question: Question, *, tenant: str | None, deadline: datetime | None) -> Answer:
        outcome = await self.executor.run(question, tenant=tenant or "", deadline=deadline)
        answer: Answer = outcome.result
        return answer

    async def ready(self) -> str:
        await self.executor.ready()
        return str(self.executor.info.get("model", ""))

    @property
    def engine(self) -> Engine:
        return self.executor


@dataclass(frozen=True)
class ServerSight:
    """A server that takes images."""

    server: OpenAiServer

    async def look(self, question: Question, *, tenant: str | None, deadline: datetime | None) -> Answer:
        return await self.server.ask(question, deadline=deadline)

    async def ready(self) -> str:
        return await self.server.served_model()

    @property
    def engine(self) -> Engine:
        return self.server


@dataclass
class Shared:
    """A sight, how many use it, and whom to tell when it sees nothing."""

    opening: "asyncio.Task[Sight]"
    stack: AsyncExitStack
    told: list[Unready]
    users: int = 0


@dataclass
class Sights:
    """The sights of one event loop, by their settings."""

    by_settings: dict[VlmSettings, Shared] = field(default_factory=dict)


_open: dict[asyncio.AbstractEventLoop, Sights] = {}


@asynccontextmanager
async def open_sight(settings: VlmSettings, unready: Unready = lambda _: None) -> AsyncIterator[Sight]:
    """The sight with these settings: opened by the first who asks, closed by the last who leaves.

    `unready` is told why nobody can see for now, and None when it is over.
    """
    loop = asyncio.get_running_loop()
    sights = _open.setdefault(loop, Sights())
    if settings not in sights.by_settings:
        stack = AsyncExitStack()
        told: list[Unready] = []
        sights.by_settings[settings] = Shared(asyncio.create_task(_opened(settings, stack, told)), stack, told)
    shared = sights.by_settings[settings]
    shared.users += 1
    shared.told.append(unready)
    try:
        yield await asyncio.shield(shared.opening)
    finally:
        shared.users -= 1
        shared.told.remove(unready)
        if not shared.users:
            del sights.by_settings[settings]
            shared.opening.cancel()
            await shared.stack.aclose()
        if not sights.by_settings:
            _open.pop(loop, None)


async def _opened(settings: VlmSettings, stack: AsyncExitStack, told: list[Unready]) -> Sight:
    if settings.engine == "openai":
        return ServerSight(
            await stack.enter_async_context(open_server(settings.base_url, settings.api_key, settings.model, settings.request_seconds))
        )
    model = await local_model(settings)

    def tell_all(reason: str | None) -> None:
        for unready in told:
            unready(reason)

    spec = EngineSpec("actors.engines.transformers_vlm:open_engine", settings.options(model))
    executor = await stack.enter_async_context(
        open_executor(spec, ExecutorSettings(), admit=PLACES, capacity=settings.max_rows, unready=tell_all)
    )
    telling = asyncio.create_task(_tell(executor))
    stack.callback(telling.cancel)
    return OwnSight(executor)


async def _tell(executor: Executor) -> None:
    """One warning when the model could not be quantized as wished."""
    await executor.ready()
    if reason := executor.info.get("fallback"):
        log.warning("engine.unquantized", reason=reason)
