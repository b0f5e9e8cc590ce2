"""Who writes: one writer for all actors of this process. Opened by the first who asks, closed by the last who leaves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from actors.engines.openai_writer import open_openai_writer
from actors.engines.vllm_writer import VllmOptions, open_vllm_writer
from actors.engines.writing import Writer
from actors.writing.settings import TextSettings, VllmSettings
from bus.errors import PermanentError

Unready = Callable[[str | None], None]


@dataclass
class Shared:
    opening: "asyncio.Task[Writer]"
    stack: AsyncExitStack
    told: list[Unready] = field(default_factory=list)
    users: int = 0


_open: dict[asyncio.AbstractEventLoop, Shared] = {}


@asynccontextmanager
async def open_writer(settings: TextSettings, unready: Unready = lambda _: None) -> AsyncIterator[Writer]:
    """`unready` is told why nobody can write for now, and None when it is over."""
    loop = asyncio.get_running_loop()
    if loop not in _open:
        stack, told = AsyncExitStack(), list[Unready]()
        _open[loop] = Shared(asyncio.create_task(_opened(settings, stack, told)), stack, told)
    shared = _open[loop]
    shared.users += 1
    shared.told.append(unready)
    try:
        yield await asyncio.shield(shared.opening)
    finally:
        shared.users -= 1
        shared.told.remove(unready)
        if not shared.users:
            del _open[loop]
            shared.opening.cancel()
            await shared.stack.aclose()


async def _opened(settings: TextSettings, stack: AsyncExitStack, told: list[Unready]) -> Writer:
    if settings.engine == "vllm":
        return await stack.enter_async_context(open_vllm_writer(options(settings), partial(tell, told)))
    writer = open_openai_writer(settings.server_url, settings.api_key, settings.model, settings.patience_seconds)
    return await stack.enter_async_context(writer)


def tell(told: list[Unready], reason: str | None) -> None:
    for unready in told:
        unready(reason)


def options(settings: TextSettings) -> VllmOptions:
    if not settings.model:
        raise PermanentError("model-unnamed", "the engine `vllm` needs VLLM_MODEL: a folder or a hub id")
    return VllmOptions(settings.model, VllmSettings().arguments(), settings.loras, settings.stall_seconds)
