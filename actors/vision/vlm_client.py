"""Who sees: one executor of this process, shared by every actor with the same settings, or a server. Opened once however many ask."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from actors.engines.language.requests import VlmRequest, VlmResponse
from actors.engines.process.executor import Executor, SetUnready, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.remote.openai_vlm import OpenAiVlm, open_openai_vlm
from actors.engines.settings import ExecutorSettings
from actors.vision.model_files import ensure_local_model
from actors.vision.settings import VlmSettings
from bus.actor import Engine

MAX_CONCURRENT_REQUESTS = 64
"""Questions in hand at once, of all actors together. Their prefetch decides; this is only the end of it."""

log = structlog.get_logger()


class VlmClient(Protocol):
    async def generate(self, request: VlmRequest, *, tenant: str | None, deadline: datetime | None) -> VlmResponse:
        """Raises PermanentError, TemporaryError, EngineDead."""
        ...

    async def ready(self) -> str:
        """Wait until questions can be answered; the model's name."""
        ...

    @property
    def engine(self) -> Engine: ...


@dataclass(frozen=True)
class LocalVlmClient:
    """The transformers engine in its process."""

    executor: Executor

    async def generate(self, request: VlmRequest, *, tenant: str | None, deadline: datetime | None) -> VlmResponse:
        outcome = await self.executor.run(request, tenant=tenant or "", deadline=deadline)
        answer: VlmResponse = outcome.result
        return answer

    async def ready(self) -> str:
        await self.executor.ready()
        return str(self.executor.info.get("model", ""))

    @property
    def engine(self) -> Engine:
        return self.executor


@dataclass(frozen=True)
class RemoteVlmClient:
    """A server that takes images."""

    server: OpenAiVlm

    async def generate(self, request: VlmRequest, *, tenant: str | None, deadline: datetime | None) -> VlmResponse:
        return await self.server.generate(request, deadline=deadline)

    async def ready(self) -> str:
        return await self.server.served_model()

    @property
    def engine(self) -> Engine:
        return self.server


@dataclass
class SharedClient:
    """A sight, how many use it, and whom to tell when it sees nothing."""

    opening: "asyncio.Task[VlmClient]"
    stack: AsyncExitStack
    listeners: list[SetUnready]
    user_count: int = 0


@dataclass
class LoopClients:
    """The sights of one event loop, by their settings."""

    by_settings: dict[VlmSettings, SharedClient] = field(default_factory=dict)


_open: dict[asyncio.AbstractEventLoop, LoopClients] = {}


@asynccontextmanager
async def open_vlm_client(settings: VlmSettings, unready: SetUnready = lambda _: None) -> AsyncIterator[VlmClient]:
    """The sight with these settings: opened by the first who asks, closed by the last who leaves.

    `unready` is told why nobody can see for now, and None when it is over.
    """
    loop = asyncio.get_running_loop()
    sights = _open.setdefault(loop, LoopClients())
    if settings not in sights.by_settings:
        stack = AsyncExitStack()
        told: list[SetUnready] = []
        sights.by_settings[settings] = SharedClient(asyncio.create_task(_open_client(settings, stack, told)), stack, told)
    shared = sights.by_settings[settings]
    shared.user_count += 1
    shared.listeners.append(unready)
    try:
        yield await asyncio.shield(shared.opening)
    finally:
        shared.user_count -= 1
        shared.listeners.remove(unready)
        if not shared.user_count:
            del sights.by_settings[settings]
            shared.opening.cancel()
            await shared.stack.aclose()
        if not sights.by_settings:
            _open.pop(loop, None)


async def _open_client(settings: VlmSettings, stack: AsyncExitStack, listeners: list[SetUnready]) -> VlmClient:
    if settings.engine == "openai":
        return RemoteVlmClient(
            await stack.enter_async_context(open_openai_vlm(settings.base_url, settings.api_key, settings.model, settings.request_seconds))
        )
    model = await ensure_local_model(settings)

    def tell_all(reason: str | None) -> None:
        for unready in listeners:
            unready(reason)

    spec = EngineSpec("actors.engines.language.engine:open_engine", settings.build_options(model))
    executor = await stack.enter_async_context(
        open_executor(spec, ExecutorSettings(), max_in_flight=MAX_CONCURRENT_REQUESTS, capacity=settings.max_rows, set_unready=tell_all)
    )
    telling = asyncio.create_task(_warn_if_unquantized(executor))
    stack.callback(telling.cancel)
    return LocalVlmClient(executor)


async def _warn_if_unquantized(executor: Executor) -> None:
    """One warning when the model could not be quantized as wished."""
    await executor.ready()
    if reason := executor.info.get("fallback"):
        log.warning("engine.unquantized", reason=reason)
