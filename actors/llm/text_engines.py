"""Who writes: one writer for all actors of this process. Opened by the first who asks, closed by the last who leaves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from actors.engines.language.requests import TextEngine
from actors.engines.remote.openai_text import open_openai_text_engine
from actors.engines.vllm.engine import VllmOptions, open_vllm_text_engine
from actors.llm.settings import TextSettings, VllmSettings
from bus.errors import PermanentError

ReadinessListener = Callable[[str | None], None]


@dataclass
class SharedEngine:
    opening: "asyncio.Task[TextEngine]"
    stack: AsyncExitStack
    listeners: list[ReadinessListener] = field(default_factory=list)
    user_count: int = 0


_open: dict[asyncio.AbstractEventLoop, SharedEngine] = {}


@asynccontextmanager
async def open_text_engine(settings: TextSettings, unready: ReadinessListener = lambda _: None) -> AsyncIterator[TextEngine]:
    """`unready` is told why nobody can write for now, and None when it is over."""
    loop = asyncio.get_running_loop()
    if loop not in _open:
        stack, told = AsyncExitStack(), list[ReadinessListener]()
        _open[loop] = SharedEngine(asyncio.create_task(_open_engine(settings, stack, told)), stack, told)
    shared = _open[loop]
    shared.user_count += 1
    shared.listeners.append(unready)
    try:
        yield await asyncio.shield(shared.opening)
    finally:
        shared.user_count -= 1
        shared.listeners.remove(unready)
        if not shared.user_count:
            del _open[loop]
            shared.opening.cancel()
            await shared.stack.aclose()


async def _open_engine(settings: TextSettings, stack: AsyncExitStack, listeners: list[ReadinessListener]) -> TextEngine:
    if settings.engine == "vllm":
        return await stack.enter_async_context(open_vllm_text_engine(build_vllm_options(settings), partial(notify_listeners, listeners)))
    writer = open_openai_text_engine(settings.server_url, settings.api_key, settings.model, settings.patience_seconds)
    return await stack.enter_async_context(writer)


def notify_listeners(listeners: list[ReadinessListener], reason: str | None) -> None:
    for unready in listeners:
        unready(reason)


def build_vllm_options(settings: TextSettings) -> VllmOptions:
    if not settings.model:
        raise PermanentError("model-unnamed", "the engine `vllm` needs VLLM_MODEL: a folder or a hub id")
    return VllmOptions(settings.model, VllmSettings().engine_args(), settings.loras, settings.stall_seconds)
