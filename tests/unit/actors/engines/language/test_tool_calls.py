"""Tool calls: the reader of an answer, what constrains it, and calls of a model of random weights, which only the grammar can give."""

import json
from dataclasses import replace
from typing import Any

import pytest

from actors.engines.language.answer_text import StopSequences
from actors.engines.language.compilation import Constraint
from actors.engines.language.requests import GenerationRequest
from actors.engines.language.text_model import TextModelEngine
from actors.engines.language.tool_calls import AnswerParts, AnswerReader, arguments_schema, left_out, structural_tag
from actors.engines.process.protocol import Failed
from bus.errors import PermanentError
from tests.support.text_runs import HERMES_TEMPLATE, chat, generate, open_engine, run

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = (
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
)
TWO_CALLS = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "}</tool_call>", "days": 2}}\n</tool_call>'
    '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def with_tools(**options: Any) -> GenerationRequest:
    return chat("weather?", 120, tools=TOOLS, **options)


def read(text: str, size: int, request: GenerationRequest | None = None, **options: Any) -> tuple[AnswerParts, AnswerReader]:
    """The parts of an answer that comes in pieces of `size` characters."""
    defaults: dict[str, Any] = {"thinks": False, "in_reasoning": False, "seed": 1}
    reader = AnswerReader(request or with_tools(), **defaults | options)
    pieces = [reader.push(text[start : start + size]) for start in range(0, len(text), size)]
    pieces.append(reader.push("", ends=True))
    calls = tuple(call for piece in pieces for call in piece.tool_calls)
    return AnswerParts("".join(piece.content for piece in pieces), "".join(piece.reasoning for piece in pieces), calls), reader


def whole_calls(parts: AnswerParts) -> list[tuple[str | None, Any]]:
    """Name and arguments of each call."""
    numbers = sorted({call.index for call in parts.tool_calls})
    by_number = [[call for call in parts.tool_calls if call.index == number] for number in numbers]
    return [(calls[0].name, json.loads("".join(call.arguments for call in calls))) for calls in by_number]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_calls_are_read_from_pieces_of_any_size(size: int) -> None:
    """A string among the arguments may look like the end of a call."""
    parts, reader = read(TWO_CALLS, size)
    assert parts.content == "Let me look.\n"
    assert whole_calls(parts) == [("weather", {"city": "}</tool_call>", "days": 2}), ("now", {})]
    assert reader.finish_reason("stop") == "tool_calls"
    assert reader.finish_reason("length") == "length"


def test_ids_follow_from_seed_and_request() -> None:
    """So that a request that runs again writes the same ones, and another one does not."""
    requests = [(with_tools(), 1), (with_tools(), 1), (with_tools(), 2), (replace(with_tools(), messages=[]), 1)]
    ids = [[call.id for call in read(TWO_CALLS, 5, request, seed=seed)[0].tool_calls if call.id] for request, seed in requests]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2
    assert len({identifier for group in ids for identifier in group}) == 6
    assert all(identifier.startswith("call_") for identifier in ids[0])


@pytest.mark.parametrize("cut", range(len(TWO_CALLS)))
def test_answer_that_is_cut_has_no_half_names(cut: int) -> None:
    """Its arguments are what was written, and it does not end with calls unless they are whole."""
    parts, reader = read(TWO_CALLS[:cut], 4)
    assert {call.name for call in parts.tool_calls} <= {"weather", "now", None}
    assert "Let me look.\n".startswith(parts.content[:13])
    whole = TWO_CALLS[:cut].count("}\n</tool_call>") == TWO_CALLS[:cut].count('<tool_call>\n{"name": "') > 0
    assert (reader.finish_reason("stop") == "tool_calls") is whole


def test_text_like_a_call_is_text_where_no_tool_is_offered() -> None:
    for request in (chat("?"), with_tools(tool_choice="none")):
        assert read(TWO_CALLS, 3, request)[0] == AnswerParts(TWO_CALLS)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_reasoning_is_apart(size: int) -> None:
    text = "<think>\nhm <b>\n</think>\n\nYes."
    assert read(text, size, thinks=True)[0] == AnswerParts("Yes.", "hm <b>\n")
    assert read(text.removeprefix("<think>"), size, in_reasoning=True)[0] == AnswerParts("Yes.", "hm <b>\n")
    assert read(text, size)[0] == AnswerParts(text)
    assert read("<thick>", size, thinks=True)[0] == AnswerParts("<thick>")
    assert read("<think>on", size, thinks=True)[0] == AnswerParts("", "on")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_stop_sequences_end_with_the_first_call(size: int) -> None:
    text = "no . yes<tool_call>a.b"
    for sequences, expected in (((".",), "no "), (("b",), text), (("<tool",), "no . yes")):
        stop = StopSequences(sequences, until="<tool_call>")
        pieces = [stop.push(text[start : start + size], ends=False) for start in range(0, len(text), size)]
        assert "".join([*pieces, stop.push("", ends=True)]) == expected


def test_arguments_are_an_object() -> None:
    assert arguments_schema({"name": "now"})["additionalProperties"] is False
    assert arguments_schema({"name": "now", "parameters": {"properties": {}}})["type"] == "object"
    with pytest.raises(PermanentError, match="'now' must have the type object, not 'string'"):
        arguments_schema({"name": "now", "parameters": {"type": "string"}})


def test_no_tag_without_tools() -> None:
    for request in (chat("?"), with_tools(tool_choice="none")):
        assert structural_tag(request, in_reasoning=False, thinks=False) is None


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TextModelEngine:
    return open_engine(tmp_path_factory.mktemp("hermes"), template=HERMES_TEMPLATE, max_model_len=1500)


def answers(engine: TextModelEngine, requests: list[GenerationRequest]) -> list[tuple[AnswerParts, str]]:
    results = []
    for request, response in zip(requests, generate(engine, *requests), strict=True):
        parts, reader = read(response.text, 50, request)
        results.append((parts, reader.finish_reason(response.finish_reason)))
    return results


SAMPLED: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0}


@pytest.mark.models
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_satisfy_their_schemas(engine: TextModelEngine, parallel: bool) -> None:
    """For any seed and limit of tokens; several at most where they are allowed."""
    requests = [replace(with_tools(tool_choice="required", parallel_tool_calls=parallel, seed=seed, **SAMPLED), max_tokens=limit)
                for seed, limit in enumerate(range(130, 230, 5))]  # fmt: skip
    counts = set()
    for parts, reason in answers(engine, requests):
        calls = whole_calls(parts)
        assert reason == "tool_calls"
        assert parts.content == ""
        for name, arguments in calls:
            assert arguments == {} if name == "now" else len(arguments["city"]) <= 6 and 1 <= arguments["days"] <= 9
        counts.add(len(calls))
    assert counts == {1} if not parallel else max(counts) > 1


@pytest.mark.models
def test_named_tool_is_called(engine: TextModelEngine) -> None:
    requests = [with_tools(tool_name="weather", seed=seed, stop=("weather", '"'), **SAMPLED) for seed in range(6)]
    for parts, reason in answers(engine, requests):
        assert ([name for name, _ in whole_calls(parts)], reason) == (["weather"], "tool_calls")


@pytest.mark.models
def test_free_answer_with_tools_is_that_without(engine: TextModelEngine) -> None:
    """As long as no call begins; here the tools change the prompt, so that the same prompt is compared with and without a grammar."""
    request = with_tools(seed=3)
    parts, reason = answers(engine, [request])[0]
    ids, _ = engine._tokenize(request)
    assert engine._tokenizer.decode(ids).count('"name": "weather"') == 1
    tokens = engine._model.generate(ids[None], do_sample=False, max_new_tokens=4)
    assert parts.content.startswith(engine._tokenizer.decode(tokens[0, len(ids) :], skip_special_tokens=True).rstrip("\ufffd"))
    assert reason == "length"


@pytest.mark.models
def test_call_that_a_free_answer_begins_is_constrained(engine: TextModelEngine) -> None:
    """The state of the grammar after free text and a begun call admits only what is a call."""
    constraint = engine._constraint(with_tools(), in_reasoning=False)
    assert isinstance(constraint, Constraint)
    state = engine._grammars.start(constraint, 100)
    for token in engine._tokenizer.encode('Well {"\n<tool_call>\n{"name": "', add_special_tokens=False):
        state.accept_token(token)
    assert state.error is None
    assert allowed(engine, state) == {"w", "n"}
    for token in engine._tokenizer.encode('now", "arguments": {}}\n</tool_call> and on', add_special_tokens=False):
        state.accept_token(token)
    assert state.error is None
    assert len(allowed(engine, state)) > 100


def allowed(engine: TextModelEngine, state: Any) -> set[str]:
    import xgrammar

    mask = xgrammar.allocate_token_bitmask(1, engine._vocab_size)
    state.fill_mask(mask, 0)
    tokens = engine._grammars._unpack_bitmask(mask[0]).nonzero().flatten().tolist()
    return {engine._tokenizer.decode([token]) for token in tokens}


@pytest.mark.models
def test_answer_with_schema_and_tools_is_one_of_both(engine: TextModelEngine) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    kinds = set()
    for parts, reason in answers(engine, [with_tools(schema=schema, seed=seed, **SAMPLED) for seed in range(12)]):
        kinds.add(reason)
        assert whole_calls(parts) if reason == "tool_calls" else set(json.loads(parts.content)) == {"ok"}
    assert kinds == {"tool_calls", "stop"}


@pytest.mark.models
def test_batch_with_calls_gives_each_its_own_answer(engine: TextModelEngine) -> None:
    requests = [with_tools(seed=1), with_tools(tool_choice="required", seed=2, **SAMPLED), chat("plain", 30), chat("?", 60, schema=WEATHER)]
    alone = [generate(engine, request)[0].text for request in requests]
    engine._prefixes.clear()
    assert [response.text for response in run(engine, requests, ticks_between=2)[0]] == alone


@pytest.mark.models
@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]}, "schema-refused"),
        ({"type": "string"}, "schema-refused"),
        ({"type": "object", "properties": {"a": {"type": "string", "minLength": 500}}, "required": ["a"]}, "token-limit-too-small"),
    ],
)
def test_tool_that_cannot_be_called_is_refused_alone(engine: TextModelEngine, parameters: dict[str, Any], code: str) -> None:
    """The neighbour gets its answer."""
    tool = {"type": "function", "function": {"name": "bad", "parameters": parameters}}
    engine.submit(1, chat("?", 60, tools=(tool,), tool_choice="required"))
    engine.submit(2, chat("neighbour", 3))
    events: list[Any] = []
    while engine.idle_seconds() is not None:
        events.extend(engine.tick())
    assert [(event.request_id, event.code) for event in events if isinstance(event, Failed)] == [(1, code)]
    assert [event.request_id for event in events if hasattr(event, "result")] == [2]


@pytest.mark.models
@pytest.mark.parametrize("begin", ["", "<think>", "\n \t<think>"])
def test_no_call_begins_in_a_reasoning(engine: TextModelEngine, begin: str) -> None:
    """Behind it a call is constrained as without one. An empty `begin`: the prompt begins the reasoning."""
    tag = structural_tag(with_tools(), in_reasoning=not begin, thinks=True)
    state = engine._grammars.start(Constraint(begin, lambda: tag, optional=True), 100)
    reasoning = "hm <tool_call> {\n</think>"
    for token in engine._tokenizer.encode(f"{begin}{reasoning} So\n<tool_call>\n", add_special_tokens=False):
        state.accept_token(token)
    assert state.error is None
    assert allowed(engine, state) == {"{"}


def test_stop_sequences_that_would_cut_json_are_reported() -> None:
    assert left_out(with_tools(stop=("x",), tool_choice="required")) == left_out(chat("?", schema={}, stop=("x",))) == ("stop",)
    for request in (with_tools(stop=("x",)), chat("?", stop=("x",)), chat("?", schema={}), with_tools(tool_choice="required")):
        assert left_out(request) == ()
