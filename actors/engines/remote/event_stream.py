"""Server-sent events of a model server, as the JSON objects in them.

Lines end at the standard's line ends only: JSON may contain other separators, such as U+2028. What servers do beside the standard is
read, too: events without a blank line between them, JSON without `data:`, and a whole completion in place of a stream.
"""

import codecs
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from actors.engines.remote.openai_client import parsing_answer, reported_error
from bus.errors import TemporaryError

LINE_END = re.compile("\r\n|\n|\r")
MAX_EVENT_CHARS = 16 << 20
"""Of one event or line: a server that sends more without an end is not read on."""
MAX_EVENT_LINES = 2000
DONE = "[DONE]"


class EventReader:
    """Reads the lines of a stream. `done`: the server reported that its answer is complete."""

    def __init__(self) -> None:
        self.done = False
        self._pending: list[str] = []
        self._raw = False

    async def events(self, data: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
        """Each event. Raises the error that an event reports, and TemporaryError("server-failed") for one that is no JSON object."""
        async with aclosing(text_lines(data)) as lines:
            async for line in lines:
                if (event := self._push(line)) is not None:
                    yield event
                if self.done:
                    return
        if self._pending:
            yield self._parse()

    def _push(self, line: str) -> dict[str, Any] | None:
        """The event that this line completes; None for none."""
        if self._raw:
            return self._add(line)
        if not line:
            return self._parse() if self._pending else None
        field, _, value = line.partition(":")
        if line.startswith(("{", "<")):
            self._raw = True
            return self._add(line)
        if DONE in (line.strip(), value.strip()):
            self.done = True
            return None
        return self._add(value.removeprefix(" ")) if field == "data" else None

    def _add(self, text: str) -> dict[str, Any] | None:
        """The event once its JSON is complete, which may be before the blank line that should end it."""
        if not self._pending and not text.strip():
            return None
        self._pending.append(text)
        if len(self._pending) > MAX_EVENT_LINES:
            raise TemporaryError(f"an event of the model server has more than {MAX_EVENT_LINES} lines", code="server-failed")
        if not text.rstrip().endswith("}"):
            return None
        try:
            json.loads("\n".join(self._pending))
        except (ValueError, RecursionError):
            return None
        return self._parse()

    def _parse(self) -> dict[str, Any]:
        text, self._raw = "\n".join(self._pending), False
        self._pending.clear()
        with parsing_answer(text):
            event: dict[str, Any] = dict(json.loads(text))
        if error := reported_error(event):
            raise error
        return event


async def text_lines(data: AsyncIterator[bytes]) -> AsyncGenerator[str]:
    """The lines of a stream of UTF-8, whatever its parts cut; a byte order mark at its beginning is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    pending: list[str] = []
    size, after_return = 0, False
    async for part in data:
        if not (text := decoder.decode(part)):
            continue
        if after_return and text[0] == "\n":
            text = text[1:]
        *lines, rest = LINE_END.split(text)
        for line in lines:
            yield "".join([*pending, line])
            pending.clear()
            size = 0
        after_return = text[-1:] == "\r"
        pending.append(rest)
        size += len(rest)
        if size > MAX_EVENT_CHARS:
            raise TemporaryError(f"a line of the model server has more than {MAX_EVENT_CHARS} characters", code="server-failed")
    yield "".join([*pending, decoder.decode(b"", final=True)])
