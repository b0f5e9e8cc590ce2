"""What the calls of all Python clients share: a picture, one tool, and the report of each call as a line of JSON."""

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
CITY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Seoul", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": CITY_SCHEMA},
}
MAX_DETAIL_CHARS = 300


PICTURE = base64.b64decode(sys.argv[2])
"""A PNG, which the test draws."""


def arguments_of(text: str | None) -> bool:
    """Whether the text is JSON that satisfies CITY_SCHEMA."""
    return json.loads(text or "null") in ({"city": "Seoul"}, {"city": "Paris"})


class Calls:
    """The calls of one client, in order. `run` reports each as a line of JSON: `client`, `call`, `ok`, `detail`."""

    def __init__(self, client: str) -> None:
        self._client = client
        self._calls: list[tuple[str, Callable[[Any], None]]] = []

    def add(self, name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """Registers a call under the name of what it shows, which is the same for all clients."""

        def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
            self._calls.append((name, function))
            return function

        return register

    def run(self, client: Any) -> None:
        for name, function in self._calls:
            try:
                function(client)
                detail = ""
            except Exception as error:  # the report names whatever fails
                detail = f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]
            report = {"client": self._client, "call": name, "ok": not detail, "detail": detail}
            sys.stdout.write(f"{json.dumps(report, ensure_ascii=False)}\n")
            sys.stdout.flush()
