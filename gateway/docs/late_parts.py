"""Parts of the OpenAPI document that are made when it is: the JSON schemas of bodies would take a start 3 MB and 40 ms."""

from collections.abc import Callable, Iterable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute


class LatePart(dict[str, Any]):
    """Empty until `fill_late_parts` calls `make`."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self.make = make


def fill_late_parts(routes: Iterable[BaseRoute]) -> None:
    for route in routes:
        if isinstance(route, APIRoute):
            _fill(route.openapi_extra)
            _fill(route.responses)


def _fill(value: Any) -> None:
    if isinstance(value, LatePart) and not value:
        value.update(value.make())
    if isinstance(value, dict):
        for part in value.values():
            _fill(part)
