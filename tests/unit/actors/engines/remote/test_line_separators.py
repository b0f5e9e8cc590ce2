"""Only the line ends of the standard end a line of a stream or of an export: JSON may contain other line separators inside its strings."""

from collections.abc import AsyncIterator

import pytest

from actors.engines.remote.event_stream import text_lines
from gateway.sse import event

SEPARATORS = "\u2028\u2029\x85\x0b\x1c"


@pytest.mark.parametrize("cut", [1, 3, 100])
async def test_stream_is_split_at_line_ends_alone(cut: int) -> None:
    text = f'data: {{"a": "{SEPARATORS}"}}\n\ndata: [DONE]\n'

    data = text.encode()

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), cut):
            yield data[start : start + cut]

    assert [line async for line in text_lines(parts())] == text.split("\n")


def test_event_with_line_separator_is_one_line() -> None:
    assert event("text", f'{{"a": "{SEPARATORS}"}}').split("\n") == ["event: text", f'data: {{"a": "{SEPARATORS}"}}', "", ""]
