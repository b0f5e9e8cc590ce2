"""The routes of the source systems: their errors are `{"detail": …}`."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from gateway.json_body import JsonRoute
from gateway.problems import FormattedRoute, HttpProblem

MAX_ECHOED_CHARS = 10_000
"""A longer input is left out of the error that it caused."""


class LegacyRoute(JsonRoute, FormattedRoute):
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
                return JSONResponse({"detail": jsonable_encoder([without_long_input(entry) for entry in error.errors()])}, 422)

        return handle_or_422


def without_long_input(entry: dict[str, Any]) -> dict[str, Any]:
    """One error of the list. FastAPI repeats the input in it, be it as long as the whole body."""
    return entry if len(json.dumps(entry.get("input"), default=str)) <= MAX_ECHOED_CHARS else entry | {"input": None}
