"""JSON from outside: strict, bounded in depth and in its number of values, and parsed outside the event loop unless it is short.

`JsonRoute` parses the bodies of a router's routes like this. Python's own parser accepts NaN, nests until the stack ends, and needs
hundreds of bytes of memory for two bytes of JSON.
"""

import json
import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, from_json
from starlette.exceptions import HTTPException

from bus.json_text import storable_json
from gateway.services import services_of

SHORT_JSON_BYTES = 16 << 10
"""A shorter body is parsed at once, in less than a millisecond."""
PARSERS = CapacityLimiter(1)
"""The parsers hold the interpreter's lock: with one at a time, the event loop runs between any two of them."""

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def parse_json(text: str | bytes) -> Any:
    """The value of standard JSON with at most 200 levels and finite numbers; half a character and NUL become U+FFFD. Raises ValueError."""
    value = from_json(storable_json(text.encode(errors="replace") if isinstance(text, str) else text), allow_inf_nan=False)
    if not all_finite(value):
        raise ValueError("a number is too large")
    return value


def all_finite(value: Any) -> bool:
    """Whether no number in a JSON value is infinite, as 1e999 is."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict | list):
        return all(map(all_finite, value.values() if isinstance(value, dict) else value))
    return True


def count_values(data: bytes) -> int:
    """About how many values JSON has: its commas, colons and opening brackets outside strings. Linear, without parsing."""
    return sum(map(_outside_strings(data).count, (b",", b":", b"[", b"{")))


def _outside_strings(data: bytes) -> bytes:
    return b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def has_more_values(data: bytes, limit: int) -> bool:
    """Whether JSON has more than `limit` values. Text in strings does not count."""
    if len(data) <= limit or sum(map(data.count, (b",", b":", b"[", b"{"))) <= limit:
        return False
    return data.count(b'"') - data.count(b'\\"') > 4 * limit or count_values(data) > limit


async def run_parser(function: Callable[..., Result], *arguments: Any, size: int) -> Result:
    """Call a function that takes time in proportion to `size` bytes: in a thread, one at a time, unless they are few."""
    if size <= SHORT_JSON_BYTES:
        return function(*arguments)
    return await to_thread.run_sync(function, *arguments, limiter=PARSERS)


async def parse_body(request: Request, parse: Callable[[bytes], Result]) -> Result:
    """Parse a JSON body. Raises HTTPException(413) for too many values, and what `parse` raises."""
    body, max_values = await request.body(), services_of(request).settings.max_json_values
    return await run_parser(_parse_bounded, body, parse, max_values, size=len(body))


def _parse_bounded(body: bytes, parse: Callable[[bytes], Result], max_values: int) -> Result:
    if has_more_values(body, max_values):
        raise HTTPException(413, f"The JSON body has more than {max_values} values. Send less in one request.")
    return parse(body)


async def validate_body(request: Request, model: type[Model]) -> Model:
    """The JSON body as a model. Raises ValidationError, HTTPException(413)."""
    return await parse_body(request, partial(validate_json, model))


def validate_json(model: type[Model], body: bytes) -> Model:
    """The model of standard JSON with finite numbers. Raises ValidationError, for other text with the type `json_invalid`."""
    try:
        value = parse_json(body)
    except ValueError as error:
        detail = InitErrorDetails(type="json_invalid", loc=(), input=None, ctx={"error": str(error)})
        raise ValidationError.from_exception_data(model.__name__, [detail]) from None
    return model.model_validate(value)


class JsonRequest(Request):
    async def json(self) -> Any:
        """Raises json.JSONDecodeError, which FastAPI answers with a 422, and HTTPException(413)."""
        if not hasattr(self, "_json"):
            try:
                self._json = await parse_body(self, parse_json)
            except ValueError as error:
                raise json.JSONDecodeError(str(error), "", 0) from None
        return self._json


class JsonRoute(APIRoute):
    """A route whose body is parsed as `JsonRequest.json` does."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_bounded
