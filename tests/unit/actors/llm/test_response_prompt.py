"""The messages and the command of a response, and what is dropped of a conversation that is too long."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engines.language.requests import PromptTooLong
from actors.llm.request_checks import check_messages
from actors.llm.response_prompt import check_calls, drop_oldest, to_command, to_messages
from bus.errors import PermanentError
from contracts.responses import Item, ItemPart, ResponseRequest
from contracts.text import Message, Picture, ToolCall

ID = f"resp_{'a' * 32}"


def message(role: Any, text: str) -> Item:
    return Item(type="message", id="msg_1", role=role, content=[ItemPart(type="input_text", text=text)])


def test_items_of_one_turn_are_one_message() -> None:
    items = [
        message("developer", "Be short."),
        message("user", "weather?"),
        Item(type="reasoning", id="rs_1", thoughts=["I look."]),
        Item(type="function_call", id="fc_1", call_id="a", name="weather", arguments="{}"),
        Item(type="function_call", id="fc_2", call_id="b", name="time", arguments="{}"),
        Item(type="function_call_output", id="fco_1", call_id="a", output="sunny"),
        Item(type="function_call_output", id="fco_2", call_id="b", output=[ItemPart(type="input_text", text="noon")]),
        message("assistant", "Sunny at noon."),
        message("assistant", "And warm."),
    ]
    messages = to_messages(items)
    assert [one.role for one in messages] == ["system", "user", "assistant", "tool", "tool", "assistant", "assistant"]
    assert (messages[2].reasoning, [call.id for call in messages[2].tool_calls]) == ("I look.", ["a", "b"])
    assert [one.content for one in messages[3:]] == ["sunny", "noon", "Sunny at noon.", "And warm."]


def test_pictures_keep_their_place() -> None:
    parts = [ItemPart(type="input_image", picture=Picture(url="https://media.example/a.png")), ItemPart(type="input_text", text="what?")]
    content = to_messages([Item(type="message", id="msg_1", role="user", content=parts)])[0].content
    assert isinstance(content, list)
    assert [part.text for part in content] == [None, "what?"]


def test_output_without_its_call_is_refused() -> None:
    with pytest.raises(PermanentError, match="call_id 'a'"):
        check_calls([Item(type="function_call_output", id="fco_1", call_id="a", output="sunny")])


def test_same_response_has_same_seed() -> None:
    request = ResponseRequest(model="text", top_p=0, instructions="i")
    first, second = (to_command(ID, request, [Message(role="user", content="x")], None) for _ in range(2))
    assert first == second
    assert first.seed is not None
    assert first.seed >= 0
    assert first.top_p is not None
    assert 0 < first.top_p < 0.001
    assert [one.content for one in first.messages or ()] == ["i", "x"]
    assert to_command(f"resp_{'b' * 32}", request, [Message(role="user", content="x")], None).seed != first.seed


@pytest.mark.parametrize(("tokens", "kept"), [(101, ["s", "q1", "a1", "q2"]), (150, ["s", "q1", "a1", "q2"]), (400, ["s", "q2"])])
def test_as_many_turns_are_dropped_as_are_too_long(tokens: int, kept: list[str]) -> None:
    roles: list[Any] = ["system", "user", "assistant", "user", "assistant", "user"]
    names = ["s", "q0", "a0", "q1", "a1", "q2"]
    messages = [Message(role=role, content=name.ljust(1 if role == "system" else 100)) for role, name in zip(roles, names, strict=True)]
    left = drop_oldest(messages, PromptTooLong(tokens, 100))
    assert [str(one.content).strip() for one in left] == kept


KINDS: Any = ["user", "system", "assistant", "call", "result"]


def conversation(kinds: list[str]) -> list[Message]:
    """A valid one: each result is that of the earliest call without one, if there is any, however far before it stands."""
    messages, calls, results = [], 0, 0
    for kind in kinds:
        if kind == "call":
            call = ToolCall(id=f"c{calls}", name="f", arguments="{}")
            messages.append(Message(role="assistant", tool_calls=[call]))
            calls += 1
        elif kind == "result" and results < calls:
            messages.append(Message(role="tool", content="r" * 9, tool_call_id=f"c{results}"))
            results += 1
        elif kind in ("user", "system", "assistant"):
            messages.append(Message.model_validate({"role": kind, "content": kind}))
    return [*messages, Message(role="user", content="last")]


@given(st.lists(st.sampled_from(KINDS), max_size=20), st.integers(0, 300), st.integers(1, 8))
def test_what_is_left_is_valid(kinds: list[str], tokens: int, at_least: int) -> None:
    """Also when a turn's results come after the next turn has begun, and when the server does not say how many tokens are too many."""
    messages = conversation(kinds)
    check_messages(messages)
    turns = sum(one.role == "user" for one in messages)
    if turns == 1:
        return
    left = drop_oldest(messages, PromptTooLong(tokens, 100 if tokens else 0), at_least)
    check_messages(left)
    assert left[-1] == messages[-1]
    assert sum(one.role == "user" for one in left) <= max(1, turns - at_least)
    assert [one for one in left if one.role == "system"] == [one for one in messages if one.role == "system"]


def test_what_no_message_can_hold_is_named() -> None:
    calls = [Item(type="function_call", id=f"fc_{number}", call_id=f"c{number}", name="f", arguments="{}") for number in range(129)]
    for make in (
        lambda: to_messages(calls),
        lambda: to_command(ID, ResponseRequest(model="text"), [Message(role="user", content="x")] * 1001, None),
    ):
        with pytest.raises(PermanentError, match="messages made of the input") as raised:
            make()
        assert raised.value.code == "invalid-message"


def test_last_turn_is_never_dropped() -> None:
    error = PromptTooLong(200, 100)
    with pytest.raises(PromptTooLong):
        drop_oldest([Message(role="system", content="s"), Message(role="user", content="q")], error)
