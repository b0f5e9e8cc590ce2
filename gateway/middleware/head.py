"""HEAD wherever GET is served: the same status and headers without a body. Monitors and load balancers probe with it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTING_KEYS = ("route", "endpoint", "path_params")
"""What the router adds to the scope, for the log line and the metrics of the request."""


class HeadMiddleware:
    """The innermost middleware: all others see the method that the client sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, without_body(send))
        finally:
            scope.update({name: inner[name] for name in ROUTING_KEYS if name in inner})


def without_body(send: Send) -> Send:
    """The response ends with its first piece of a body, so that an event stream is closed at once."""
    ended = False

    async def sending(message: Message) -> None:
        nonlocal ended
        if message["type"] != "http.response.body":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return sending
