"""The events and items of a response's output; a run that begins again sends nothing twice, and must write the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.llm.response_output import OutputStream, restore_segments
from bus.errors import PermanentError
from contracts.text import TextDelta, TokenLogprob, ToolCallDelta

ID = f"resp_{'0' * 32}"
ANSWER = [
    TextDelta(sequence=0, delta="", reasoning="Let me "),
    TextDelta(sequence=1, delta="", reasoning="look."),
    TextDelta(sequence=2, delta="I call ", logprobs=[TokenLogprob(text="I", logprob=-1.0)]),
    TextDelta(sequence=3, delta="two:"),
    TextDelta(sequence=4, delta="", tool_calls=[ToolCallDelta(index=0, id="a", name="weather", arguments='{"city"')]),
    TextDelta(sequence=5, delta="", tool_calls=[ToolCallDelta(index=0, arguments=': "x"}')]),
    TextDelta(sequence=6, delta="", tool_calls=[ToolCallDelta(index=1, id="b", name="time", arguments="{}")]),
]


def write(stream: OutputStream, deltas: list[TextDelta], flush_after: set[int], *, ends: bool = True) -> list[dict[str, Any]]:
    """The events, taken after some deltas and at the end."""
    events: list[dict[str, Any]] = []
    for number, delta in enumerate(deltas):
        stream.add(delta)
        events += stream.take_events() if number in flush_after else []
    return events + (stream.take_events("completed") if ends else [])


def texts(events: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    return [(segment.kind, segment.text, segment.is_done) for segment in restore_segments(events)]


WHOLE = [
    ("reasoning", "Let me look.", True),
    ("message", "I call two:", True),
    ("function_call", '{"city": "x"}', True),
    ("function_call", "{}", True),
]


@given(st.sets(st.integers(0, 6)))
def test_deltas_make_up_the_items(flush_after: set[int]) -> None:
    stream = OutputStream(ID)
    events = write(stream, ANSWER, flush_after)
    assert texts(events) == WHOLE
    items = [item.to_openai() for item in stream.items("completed")]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == items
    assert [item["id"][:3] for item in items] == ["rs_", "msg", "fc_", "fc_"]
    assert [item.get("call_id") for item in items] == [None, None, "a", "b"]


@given(st.integers(0, 6), st.sets(st.integers(0, 6)), st.sets(st.integers(0, 6)))
def test_second_run_continues_the_first(interrupted_at: int, first_flushes: set[int], second_flushes: set[int]) -> None:
    """However both runs divide the answer: all events together are those of one run."""
    stored = write(OutputStream(ID), ANSWER[: interrupted_at + 1], first_flushes, ends=False)
    second = OutputStream(ID, stored)
    events = stored + write(second, ANSWER, second_flushes)
    assert texts(events) == WHOLE
    opened = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["output_index"] for event in events if event["type"] == "response.output_item.done"]
    assert opened == done == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "other",
    [
        [TextDelta(sequence=0, delta="one thing")],
        [TextDelta(sequence=0, delta="one")],
        [TextDelta(sequence=0, delta="", reasoning="one two")],
        [TextDelta(sequence=0, delta="", tool_calls=[ToolCallDelta(index=0, name="one")])],
        [],
    ],
)
def test_run_that_writes_something_else_is_refused(other: list[TextDelta]) -> None:
    stored = write(OutputStream(ID), [TextDelta(sequence=0, delta="one two ")], {0}, ends=False)
    with pytest.raises(PermanentError) as raised:
        write(OutputStream(ID, stored), other, set())
    assert raised.value.code == "answer-changed"


def test_calls_in_turns_are_refused() -> None:
    stream = OutputStream(ID)
    for index in (0, 1):
        stream.add(TextDelta(sequence=0, delta="", tool_calls=[ToolCallDelta(index=index, name="a")]))
    with pytest.raises(PermanentError, match="in turns"):
        stream.add(TextDelta(sequence=0, delta="", tool_calls=[ToolCallDelta(index=0, arguments="{}")]))


def test_text_that_postgres_cannot_store_is_replaced() -> None:
    stream = OutputStream(ID)
    assert texts(write(stream, [TextDelta(sequence=0, delta="a\0b")], set())) == [("message", "a\ufffdb", True)]
