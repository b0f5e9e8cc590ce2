"""Cancel the work on a request when its client disconnects. An accepted job goes on."""

import asyncio

from starlette.types import ASGIApp, Scope, Send

from gateway.middleware.body import LimitedBody

DISCONNECT_WATCH_DELAY_SECONDS = 0.05
"""Most requests are answered sooner, and are not watched at all."""


async def cancel_on_disconnect(app: ASGIApp, scope: Scope, body: LimitedBody, send: Send) -> None:
    """Serve the request until it is answered or its client has disconnected."""
    watcher = DisconnectWatcher(body)
    timer = asyncio.get_running_loop().call_later(DISCONNECT_WATCH_DELAY_SECONDS, watcher.start)
    try:
        await app(scope, body.receive, send)
    except asyncio.CancelledError:
        if not watcher.absorb_cancellation():
            raise
    finally:
        timer.cancel()
        watcher.stop()


class DisconnectWatcher:
    """Cancels the task that created it when the client of its request disconnects."""

    def __init__(self, body: LimitedBody) -> None:
        self._body, self._request_task, self._disconnected = body, asyncio.current_task(), False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._cancel_when_disconnected())

    def stop(self) -> None:
        if self._task:
            self._task.cancel()

    def absorb_cancellation(self) -> bool:
        """Whether the task's cancellation came from this watcher only; then it ends here."""
        assert self._request_task is not None
        return self._disconnected and not self._request_task.uncancel()

    async def _cancel_when_disconnected(self) -> None:
        await self._body.wait_for_disconnect()
        assert self._request_task is not None
        self._disconnected = True
        self._request_task.cancel()
