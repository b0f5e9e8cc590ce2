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


PARTS = st.sampled_from(["text", "thought", "silent", "call 0", "call 1", "call 2", "thought and text", "text and call 1"])


def delta_of(kind: str, number: int) -> TextDelta:
    """A delta whose parts are `number`, and whose tokens all have a log probability."""
    texts = {"delta": f"t{number} " if "text" in kind else "", "reasoning": f"r{number} " if "thought" in kind else ""}
    calls = [ToolCallDelta(index=int(kind[-1]), id=f"id{kind[-1]}", name="f", arguments=f"a{number} ")] if "call" in kind else []
    token = TokenLogprob(text=str(number), logprob=-1.0)
    return TextDelta.model_validate({"sequence": number, "tool_calls": calls, "logprobs": [token], **texts})


@given(st.lists(PARTS, max_size=12), st.sets(st.integers(0, 11)))
def test_order_of_parts_changes_nothing(kinds: list[str], flush_after: set[int]) -> None:
    """Whatever follows what: no item is empty, each call is one item, and only text has log probabilities, each token once."""
    stream = OutputStream(ID)
    events = write(stream, [delta_of(kind, number) for number, kind in enumerate(kinds)], flush_after)
    items = stream.items("completed")
    numbers = range(len(kinds))
    for kind, word, prefix in (("message", "text", "t"), ("reasoning", "thought", "r")):
        written = "".join(segment.text for segment in restore_segments(events) if segment.kind == kind)
        assert written == "".join(f"{prefix}{number} " for number in numbers if word in kinds[number])
    calls = {item.call_id: item.arguments for item in items if item.type == "function_call"}
    assert len(calls) == sum(item.type == "function_call" for item in items)
    for call in range(3):
        assert calls.get(f"id{call}", "") == "".join(f"a{number} " for number in numbers if f"call {call}" in kinds[number])
    assert all(segment.text and segment.is_done for segment in restore_segments(events))
    tokens = [int(token.text) for item in items for part in item.content for token in part.logprobs]
    assert tokens == sorted(set(tokens))
    assert {number for number in numbers if "text" in kinds[number]} <= set(tokens)
    assert not [number for number in tokens if kinds[number] == "thought" or kinds[number].startswith("call")]


def test_token_of_half_a_character_belongs_to_the_text_after_it() -> None:
    stream = OutputStream(ID)
    write(stream, [delta_of("thought", 0), delta_of("silent", 1), delta_of("text", 2), delta_of("silent", 3)], {0, 1, 2})
    assert [token.text for token in stream.items("completed")[1].content[0].logprobs] == ["1", "2", "3"]


def test_text_that_postgres_cannot_store_is_replaced() -> None:
    stream = OutputStream(ID)
    assert texts(write(stream, [TextDelta(sequence=0, delta="a\0b")], set())) == [("message", "a\ufffdb", True)]
