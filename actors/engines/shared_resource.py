"""One resource, such as an engine, for all actors of a worker that use it: opened for the first user, closed after the last.

The resources of a worker are in a dictionary that all its actors get (`Resources.shared`), so that no module has mutable state.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SetUnready = Callable[[str | None], None]
"""Called with the reason when no request can be served, and with None when requests can be served again."""


class SharedResource(Generic[T]):
    """A resource and the readiness callbacks of its users. Opened in its own task, so that cancelling a user does not stop it."""

    def __init__(self, open_resource: Callable[[SetUnready], AbstractAsyncContextManager[T]]) -> None:
        self.listeners: list[SetUnready] = []
        self._reason: str | None = None
        self._stack = AsyncExitStack()
        self._opening = asyncio.create_task(self._stack.enter_async_context(open_resource(self._notify)))

    def add_listener(self, set_unready: SetUnready) -> None:
        """`set_unready` is called at once when the resource is unready now, and at every later change."""
        self.listeners.append(set_unready)
        if self._reason is not None:
            set_unready(self._reason)

    async def get(self) -> T:
        """Wait until it is open. Raises what opening it raised."""
        return await asyncio.shield(self._opening)

    async def close(self) -> None:
        """Stop opening it, or close it."""
        self._opening.cancel()
        await asyncio.gather(self._opening, return_exceptions=True)
        await self._stack.aclose()

    @property
    def has_failed(self) -> bool:
        """Whether opening it has raised."""
        return self._opening.done() and (self._opening.cancelled() or self._opening.exception() is not None)

    def _notify(self, reason: str | None) -> None:
        self._reason = reason
        for set_unready in self.listeners:
            set_unready(reason)


@asynccontextmanager
async def open_shared(
    shared: dict[Hashable, Any],
    key: Hashable,
    open_resource: Callable[[SetUnready], AbstractAsyncContextManager[T]],
    set_unready: SetUnready = lambda _: None,
) -> AsyncIterator[T]:
    """The resource of `key`; `open_resource` is called for the first user only, and again for the first one after it has raised.

    The callback that it gets calls every user's `set_unready`; a user that joins an unready resource gets the reason at once.
    """
    if key not in shared or shared[key].has_failed:
        shared[key] = SharedResource(open_resource)
    resource: SharedResource[T] = shared[key]
    resource.add_listener(set_unready)
    try:
        yield await resource.get()
    finally:
        resource.listeners.remove(set_unready)
        if not resource.listeners:
            if shared.get(key) is resource:
                del shared[key]
            await resource.close()
