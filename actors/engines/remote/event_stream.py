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

from actors.engines.remote.openai_client import error_of, parsing_answer, reported_error, to_object
from bus.errors import TemporaryError

LINE_END = re.compile("\r\n|\n|\r")
MAX_EVENT_CHARS = 16 << 20
"""Of one event or line: a server that sends more without an end is not read on."""
MAX_EVENT_LINES = 2000
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|([{\[])|([}\]])')
"""Of JSON, whose texts end in the line in which they begin."""
DONE = "[DONE]"


class EventReader:
    """Reads the lines of a stream. `done`: the server reported that its answer is complete."""

    def __init__(self) -> None:
        self.done = False
        self._pending: list[str] = []
        self._raw, self._kind = False, ""
        self._size, self._depth = 0, 0

    async def events(self, data: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
        """Each event. Raises the error that an event reports, and TemporaryError("server-failed") for one that is no JSON object."""
        async with aclosing(text_lines(data)) as lines:
            async for line in lines:
                if (event := self._push(line)) is not None:
                    yield event
                if self.done:
                    return
        if self._pending and (event := self._parse()) is not None:
            yield event

    def _push(self, line: str) -> dict[str, Any] | None:
        """The event that this line completes; None for none."""
        if self._raw:
            return self._add(line)
        if not line:
            if self._pending or self._kind == "error":
                return self._parse()
            self._kind = ""
            return None
        field, _, value = line.partition(":")
        if line.startswith(("{", "<")):
            self._raw = True
            return self._add(line)
        if DONE in (line.strip(), value.strip()):
            self.done = True
            return None
        if field == "event":
            self._kind = value.strip()
        return self._add(value.removeprefix(" ")) if field == "data" else None

    def _add(self, text: str) -> dict[str, Any] | None:
        """The event once its JSON is complete, which may be before the blank line that should end it."""
        if not self._pending and not text.strip():
            return None
        self._pending.append(text)
        self._size += len(text) + 1
        if len(self._pending) > MAX_EVENT_LINES or self._size > MAX_EVENT_CHARS:
            limits = f"{MAX_EVENT_LINES} lines or {MAX_EVENT_CHARS} characters"
            raise TemporaryError(f"an event of the model server has more than {limits}", code="server-failed")
        if len(self._pending) == 1 and self._is_complete():
            return self._parse()
        self._depth += sum(bool(found[1]) - bool(found[2]) for found in BRACKETS.finditer(text))
        if len(self._pending) == 1 or self._depth != 0:
            return None
        if self._is_complete():
            return self._parse()
        self._depth = MAX_EVENT_CHARS  # tried once: it ends at its blank line
        return None

    def _is_complete(self) -> bool:
        if not self._pending[-1].rstrip().endswith(("}", "]")):
            return False
        try:
            json.loads("\n".join(self._pending))
        except (ValueError, RecursionError):
            return False
        return True

    def _reset(self) -> None:
        self._pending.clear()
        self._raw, self._kind = False, ""
        self._size, self._depth = 0, 0

    def _parse(self) -> dict[str, Any] | None:
        """None for `null`, which keeps a connection alive."""
        text, kind = "\n".join(self._pending), self._kind
        self._reset()
        if kind == "error":
            raise event_error(text)
        with parsing_answer(text):
            value = json.loads(text)
            event = None if value is None else to_object(value)
        if event is not None and (error := reported_error(event)):
            raise error
        return event


def event_error(text: str) -> Exception:
    """Of the data of an event of the kind `error`: JSON, or plain text."""
    try:
        body = to_object(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return error_of(text or "without a text")
    return reported_error(body) or error_of(body)


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
