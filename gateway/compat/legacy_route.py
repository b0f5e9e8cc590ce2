"""The routes of the source systems, whose clients read what is wrong with a body in FastAPI's own form."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute


class LegacyRoute(APIRoute):
    """A body without its fields is told which: `{"detail": [{"loc": …}]}`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return JSONResponse({"detail": jsonable_encoder(error.errors())}, 422)

        return handled
