"""The routes of the source systems: their errors are `{"detail": …}`."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from gateway.problems import FormattedRoute, HttpProblem


class LegacyRoute(FormattedRoute):
    """An invalid body is a 422 with FastAPI's own list: `{"detail": [{"loc": …}]}`."""

    @staticmethod
    def error_format(problem: HttpProblem) -> dict[str, Any]:
        return {"detail": problem.detail}

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_422(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return JSONResponse({"detail": jsonable_encoder(error.errors())}, 422)

        return handle_or_422
