"""Tool calls, reasoning, log probabilities and raw prompts as public servers send them, whole and in streams.

The servers are real sockets; the forms are those of the named servers.
"""

import time
from collections.abc import Iterable
from typing import Any

import pytest

from actors.engines.language.requests import GenerationChunk
from actors.engines.remote.tool_calls import ToolCallReader
from bus.errors import PermanentError, TemporaryError
from tests.support.raw_openai_server import RawAnswer, chunk, completion, error, event, events, stream, whole_or_stream
from tests.support.server_lab import lab

pytestmark = pytest.mark.timeout(60)
TOOLS = tuple({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "clock"))
OSLO = '{"city": "Oslo"}'
Call = tuple[str | None, str, str]


def fragment(arguments: Any = None, *, name: str | None = None, **fields: Any) -> dict[str, Any]:
    """One entry of a delta's or message's tool_calls."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"type": "function", "function": function} | fields


def calls_of(chunks: Iterable[GenerationChunk]) -> list[Call]:
    """Each call as (id, name, arguments); its id and name are in its first part alone."""
    calls: dict[int, Call] = {}
    for part in (part for piece in chunks for part in piece.tool_calls):
        assert (part.index in calls) is (part.name is None) is (part.id is None)
        call_id, name, arguments = calls.get(part.index, (part.id, part.name or "", ""))
        calls[part.index] = call_id, name, arguments + part.arguments
    assert list(calls) == list(range(len(calls)))
    return list(calls.values())


STREAMS: dict[str, tuple[list[list[dict[str, Any]]], list[Call]]] = {
    "OpenAI, vLLM: the id in the first fragment": (
        [[fragment("", index=0, id="a", name="weather")], [fragment('{"city": ', index=0)], [fragment('"Oslo"}', index=0)]],
        [("a", "weather", OSLO)],
    ),
    "OpenAI: two calls at the same time": (
        [
            [fragment("", index=0, id="a", name="weather"), fragment("", index=1, id="b", name="clock")],
            [fragment("{}", index=1)],
            [fragment(OSLO, index=0)],
        ],
        [("a", "weather", OSLO), ("b", "clock", "{}")],
    ),
    "id and name in every fragment": (
        [[fragment('{"city": ', index=0, id="a", name="weather")], [fragment('"Oslo"}', index=0, id="a", name="weather")]],
        [("a", "weather", OSLO)],
    ),
    "Ollama, Gemini: whole calls, all with index 0": (
        [[fragment(OSLO, index=0, id="a", name="weather")], [fragment(OSLO, index=0, id="b", name="weather")]],
        [("a", "weather", OSLO), ("b", "weather", OSLO)],
    ),
    "Gemini before: whole calls without ids, all with index 0": (
        [[fragment(OSLO, index=0, id="", name="weather"), fragment("{}", index=0, id="", name="clock")]],
        [(None, "weather", OSLO), (None, "clock", "{}")],
    ),
    "whole calls without an index": (
        [[fragment(OSLO, name="weather")], [fragment(OSLO, name="weather")]],
        [(None, "weather", OSLO), (None, "weather", OSLO)],
    ),
    "fragments without an index": (
        [[fragment('{"city": ', id="a", name="weather")], [fragment('"Oslo"}')]],
        [("a", "weather", OSLO)],
    ),
    "arguments as an object": ([[fragment({"city": "Oslo"}, index=0, id="a", name="weather")]], [("a", "weather", OSLO)]),
    "no arguments": ([[fragment(None, index=0, id="a", name="clock")]], [("a", "clock", "{}")]),
    "arguments that are no JSON": ([[fragment('{"city": Oslo', index=0, id="a", name="weather")]], [("a", "weather", '{"city": Oslo')]),
    "the name after arguments": (
        [[fragment('{"city": ', index=0, id="a")], [fragment('"Oslo"}', index=0, name="weather")]],
        [("a", "weather", OSLO)],
    ),
    "an index that begins with 3": ([[fragment(OSLO, index=3, id="a", name="weather")]], [("a", "weather", OSLO)]),
    "an id that is too long": ([[fragment(OSLO, index=0, id="x" * 300, name="weather")]], [(None, "weather", OSLO)]),
    "half a character": (
        [[fragment('{"city": "\ud83d', index=0, id="a", name="weather")], [fragment('\ude00"}', index=0)]],
        [("a", "weather", '{"city": "😀"}')],
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_calls_in_a_stream(kind: str) -> None:
    deltas, expected = STREAMS[kind]
    bodies = [*(chunk(tool_calls=calls) for calls in deltas), chunk(finish="tool_calls")]
    answer = stream(*(event(body, ascii_only=True) for body in bodies))
    async with lab(lambda _: answer) as rig:
        chunks = await rig.chunks(stream=True, tools=TOOLS)
    calls = calls_of(chunks)
    assert [(call[0] if expected[n][0] else None, *call[1:]) for n, call in enumerate(calls)] == expected
    assert all(call_id and len(call_id) <= 256 for call_id, _, _ in calls)
    assert len({call_id for call_id, _, _ in calls}) == len(calls)
    assert chunks[-1].finish_reason == "tool_calls"


WHOLE: dict[str, tuple[dict[str, Any], str, Call]] = {
    "OpenAI": ({"tool_calls": [fragment(OSLO, id="a", name="weather")]}, "tool_calls", ("a", "weather", OSLO)),
    "named tool, Ollama": ({"tool_calls": [fragment(OSLO, id="a", name="weather")]}, "stop", ("a", "weather", OSLO)),
    "arguments as an object, no id": ({"tool_calls": [fragment({"city": "Oslo"}, name="weather")]}, "tool_calls", (None, "weather", OSLO)),
    "function_call": ({"function_call": {"name": "weather", "arguments": OSLO}}, "function_call", (None, "weather", OSLO)),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("streams", [False, True])
async def test_whole_calls(kind: str, streams: bool) -> None:
    """A server that does not stream sends the same to a request for a stream."""
    message, reason, expected = WHOLE[kind]
    async with lab(lambda _: completion(None, reason, **message)) as rig:
        chunks = await rig.chunks(stream=streams, tools=TOOLS)
    (call,) = calls_of(chunks)
    assert (call if expected[0] else (None, *call[1:])) == expected
    assert chunks[-1].finish_reason == "tool_calls"


async def test_answer_that_is_cut_inside_a_call_says_so() -> None:
    answer = completion(None, "length", tool_calls=[fragment('{"city": "Os', id="a", name="weather")])
    async with lab(lambda _: answer) as rig:
        chunks = await rig.chunks(tools=TOOLS)
    assert (calls_of(chunks), chunks[-1].finish_reason) == ([("a", "weather", '{"city": "Os')], "length")


async def test_reason_of_calls_without_a_call_is_a_usual_end() -> None:
    async with lab(lambda _: completion("no call", "tool_calls")) as rig:
        assert (await rig.chunks(tools=TOOLS))[-1].finish_reason == "stop"


HOSTILE = {
    "too many calls": [fragment("{}", index=n, id=str(n), name="clock") for n in range(129)],
    "endless arguments": [fragment("x" * 600_000, index=0, id="a", name="clock"), fragment("x" * 600_000, index=0)],
    "a long name": [fragment("{}", index=0, id="a", name="x" * 300)],
    "no name": [fragment("{}", index=0, id="a")],
    "no list": "calls",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("streams", [False, True])
async def test_calls_without_bounds_or_sense_are_a_failure_of_the_server(kind: str, streams: bool) -> None:
    calls: Any = HOSTILE[kind]
    answer = events(chunk(tool_calls=calls), chunk(finish="tool_calls")) if streams else completion(None, tool_calls=calls)
    async with lab(lambda _: answer, patience=0.2) as rig:
        with pytest.raises(TemporaryError) as raised:
            await rig.chunks(stream=streams, tools=TOOLS)
    assert raised.value.code == "server-failed"


def test_fragments_are_read_in_linear_time() -> None:
    """Also where each of them could begin another call."""
    reader, started = ToolCallReader(), time.process_time()
    for _ in range(100_000):
        reader.push({"tool_calls": [{"index": 0, "function": {"name": "clock", "arguments": "}" * 10}}]})
    assert time.process_time() - started < 10


@pytest.mark.parametrize("streams", [False, True])
async def test_one_call_where_one_is_allowed_also_from_a_server_that_refuses_the_parameter(streams: bool) -> None:
    """Ollama and others do not know `parallel_tool_calls`."""
    calls = [fragment("{}", index=n, id=str(n), name="clock") for n in range(3)]

    def respond(sent: dict[str, Any]) -> RawAnswer:
        if "parallel_tool_calls" in sent:
            return error("Unrecognized request argument supplied: parallel_tool_calls")
        return events(chunk(tool_calls=calls), chunk(finish="tool_calls")) if streams else completion(None, tool_calls=calls)

    async with lab(respond) as rig:
        chunks = await rig.chunks(stream=streams, tools=TOOLS, parallel_tool_calls=False)
    assert calls_of(chunks) == [("0", "clock", "{}")]
    assert rig.server.requests[0]["parallel_tool_calls"] is False


async def test_tools_and_messages_of_tools_are_sent_in_the_form_of_openai() -> None:
    async with lab(lambda _: completion(None, tool_calls=[fragment("{}", id="a", name="clock")])) as rig:
        await rig.chunks(tools=TOOLS)
        await rig.chunks(tools=TOOLS, tool_choice="required")
        await rig.chunks(tools=TOOLS, tool_name="clock")
    auto, required, named = rig.server.requests
    assert auto["tools"] == list(TOOLS)
    assert "tool_choice" not in auto
    assert required["tool_choice"] == "required"
    assert named["tool_choice"] == {"type": "function", "function": {"name": "clock"}}


REFUSED: dict[str, tuple[dict[str, Any], RawAnswer, str]] = {
    "Ollama": ({"tools": TOOLS}, error("registry.ollama.ai/library/tiny:latest does not support tools"), "tools"),
    "vLLM without a parser": (
        {"tools": TOOLS}, error('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'), "tool",
    ),
    "llama.cpp": ({"tools": TOOLS}, error("tools param requires --jinja flag", 500), "tools"),
    "OpenRouter": ({"tools": TOOLS}, error("No endpoints found that support tool use.", 404), "tools"),
    "unknown field": ({"tools": TOOLS}, error("Extra inputs are not permitted", 422, param="tools"), "tools"),
    "tool_choice": ({"tools": TOOLS, "tool_choice": "required"}, error("tool_choice `required` is not supported"), "tool_choice"),
    "OpenAI, reasoning": ({"logprobs": 2}, error("'logprobs' is not supported with this model.", param="logprobs"), "logprobs"),
    "OpenAI, logprobs": ({"logprobs": 2}, error("You are not allowed to request logprobs from this model", 403), "logprobs"),
    "top_logprobs": ({"logprobs": 2}, error("unknown field `top_logprobs`", 422), "top_logprobs"),
    "OpenAI, effort": (
        {"reasoning_effort": "low"}, error("Unrecognized request argument supplied: reasoning_effort"), "reasoning_effort",
    ),
    "Ollama, effort": ({"reasoning_effort": "low"}, error('"tiny" does not support thinking'), "reasoning_effort"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("streams", [False, True])
async def test_what_was_asked_for_is_never_left_out(kind: str, streams: bool) -> None:
    """It is refused with its name, after one request, and nothing is learned."""
    options, answer, name = REFUSED[kind]
    async with lab(lambda _: answer, patience=5.0) as rig:
        with pytest.raises(PermanentError, match=name) as raised:
            await rig.chunks(stream=streams, **options)
    assert raised.value.code == "parameter-unsupported"
    assert len(rig.server.requests) == 1
    assert rig.parameters.describe("m") == {}


async def test_tool_with_a_wrong_schema_is_refused_with_the_words_of_the_server() -> None:
    answer = error("Invalid schema for function 'clock': None is not of type 'object'", param="tools[1].function.parameters")
    async with lab(lambda _: answer) as rig:
        with pytest.raises(PermanentError, match="Invalid schema for function") as raised:
            await rig.chunks(tools=TOOLS, schema={"type": "object"})
    assert raised.value.code == "server-refused"


async def test_other_parameters_are_learned_beside_tools() -> None:
    def respond(sent: dict[str, Any]) -> RawAnswer:
        return error("Extra inputs are not permitted: repetition_penalty", 422) if "repetition_penalty" in sent else whole_or_stream(sent)

    async with lab(respond) as rig:
        chunks = await rig.chunks(tools=TOOLS, repetition_penalty=1.1)
    assert chunks[-1].left_out == ("repetition_penalty",)
    assert rig.server.requests[-1]["tools"] == list(TOOLS)


REASONING: dict[str, dict[str, Any]] = {
    "DeepSeek, vLLM, llama.cpp": {"reasoning_content": "hm"},
    "OpenRouter, Ollama": {"reasoning": "hm"},
    "both": {"reasoning": "hm", "reasoning_content": "hm"},
    "Mistral": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "hello"}]},
}


@pytest.mark.parametrize("kind", REASONING)
@pytest.mark.parametrize("streams", [False, True])
async def test_reasoning_is_apart_from_the_answer(kind: str, streams: bool) -> None:
    fields = {"content": "hello"} | REASONING[kind]
    content = fields.pop("content")
    answer = events(chunk(content, **fields), chunk(finish="stop")) if streams else completion(content, **fields)
    async with lab(lambda _: answer) as rig:
        chunks = await rig.chunks(stream=streams)
    assert ("".join(part.text for part in chunks), "".join(part.reasoning for part in chunks)) == ("hello", "hm")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 64}, "completion_tokens_details": {"reasoning_tokens": 5}}, (64, 5)),
        ({"prompt_cache_hit_tokens": 32}, (32, 0)),
        ({"input_tokens_details": {"cached_tokens": "7"}, "output_tokens_details": None}, (7, 0)),
        ({"prompt_tokens_details": None, "completion_tokens_details": []}, (0, 0)),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_cached_and_reasoning_tokens(usage: dict[str, Any], expected: tuple[int, int], streams: bool) -> None:
    counts = {"prompt_tokens": 100, "completion_tokens": 9} | usage
    whole = completion("hello")
    answer = events(chunk("hello"), chunk(finish="stop"), {"choices": [], "usage": counts}) if streams else whole
    whole.body["usage"] = counts
    async with lab(lambda _: answer) as rig:
        last = (await rig.chunks(stream=streams))[-1]
    assert (last.prompt_tokens, last.completion_tokens, last.cached_tokens, last.reasoning_tokens) == (100, 9, *expected)


TOKEN = {"token": "hel", "logprob": -0.25, "bytes": [104, 101, 108], "top_logprobs": [{"token": "bye", "logprob": -2}]}


@pytest.mark.parametrize("streams", [False, True])
async def test_log_probabilities(streams: bool) -> None:
    """Those of tokens that a stop sequence cuts off are left out."""
    logprobs = {"content": [TOKEN, {"token": "lo###", "logprob": -9e999 if streams else -3, "top_logprobs": None}, TOKEN]}
    whole = completion("hello###hel")
    whole.body["choices"][0]["logprobs"] = logprobs
    part = chunk("hello###hel")
    part["choices"][0]["logprobs"] = logprobs
    async with lab(lambda _: events(part, chunk(finish="stop")) if streams else whole) as rig:
        chunks = await rig.chunks(stream=streams, logprobs=1, stop=("###",))
    tokens = [token for part in chunks for token in part.logprobs]
    assert [(token.text, token.logprob) for token in tokens] == [("hel", -0.25), ("lo###", -9999.0 if streams else -3)]
    assert tokens[0].bytes == [104, 101, 108]
    assert [(other.text, other.logprob, other.bytes) for other in tokens[0].top] == [("bye", -2, None)]
    assert (rig.server.requests[0]["logprobs"], rig.server.requests[0]["top_logprobs"]) == (True, 1)


def with_tokens(body: dict[str, Any], *texts: str) -> dict[str, Any]:
    """The first choice gets these tokens, each with five alternatives, as some servers always send them."""
    others = [{"token": str(number), "logprob": -number} for number in (1, 3, 2, 5, 4)]
    body["choices"][0]["logprobs"] = {"content": [{"token": text, "logprob": -1, "top_logprobs": others} for text in texts]}
    return body


@pytest.mark.parametrize("streams", [False, True])
async def test_reasoning_and_calls_have_no_log_probabilities(streams: bool) -> None:
    """vLLM sends those of all tokens. As many alternatives are read as were asked for."""
    call = fragment("{}", index=0, id="a", name="clock")
    tokens = ("<think>", "so", "</think>", "I", " call", "<tool_call>", "{}")
    whole = completion("I call", reasoning_content="so", tool_calls=[call])
    parts = [
        with_tokens(chunk(reasoning_content="so"), *tokens[:2]),
        with_tokens(chunk("I"), *tokens[2:4]),
        with_tokens(chunk(" call"), tokens[4]),
        with_tokens(chunk(tool_calls=[call]), *tokens[5:]),
        with_tokens(chunk(finish="tool_calls"), "<eos>"),
    ]
    with_tokens(whole.body, *tokens)
    async with lab(lambda _: events(*parts) if streams else whole) as rig:
        chunks = await rig.chunks(stream=streams, logprobs=2, tools=TOOLS)
    found = [token for part in chunks for token in part.logprobs]
    assert [token.text for token in found] == ["I", " call"]
    assert [[other.text for other in token.top] for token in found] == [["1", "2"]] * 2


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("empty", [{}, {"index": 0, "function": {"arguments": ""}}, {"index": 0, "type": "function", "function": {}}])
async def test_empty_fragment_is_no_call(empty: dict[str, Any], streams: bool) -> None:
    parts = [chunk("hello", tool_calls=[empty]), chunk(tool_calls=[empty]), chunk(finish="stop")]
    async with lab(lambda _: events(*parts) if streams else completion("hello", tool_calls=[empty])) as rig:
        chunks = await rig.chunks(stream=streams, tools=TOOLS)
    assert ("".join(part.text for part in chunks), calls_of(chunks), chunks[-1].finish_reason) == ("hello", [], "stop")


@pytest.mark.parametrize("streams", [False, True])
async def test_server_that_ignores_log_probabilities_is_reported(streams: bool) -> None:
    async with lab(whole_or_stream) as rig:
        with pytest.raises(PermanentError, match="logprobs") as raised:
            await rig.chunks(stream=streams, logprobs=0)
    assert raised.value.code == "parameter-unsupported"


@pytest.mark.parametrize(
    "logprobs", [{"content": "x"}, {"content": [{}]}, {"content": [{"token": "a", "logprob": "b"}]}, {"tokens": ["a"]}]
)
async def test_log_probabilities_that_are_none_are_a_failure_of_the_server(logprobs: Any) -> None:
    answer = completion("hello")
    answer.body["choices"][0]["logprobs"] = logprobs
    async with lab(lambda _: answer, patience=0.2) as rig:
        with pytest.raises(TemporaryError) as raised:
            await rig.chunks(logprobs=0)
    assert raised.value.code == "server-failed"


def raw_completion(*texts: str, finish: str = "stop", **fields: Any) -> list[dict[str, Any]]:
    ends = [None] * (len(texts) - 1) + [finish]
    choices = [{"index": 0, "text": text, "finish_reason": end} | fields for text, end in zip(texts, ends, strict=True)]
    return [{"object": "text_completion", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}} for choice in choices]


@pytest.mark.parametrize("streams", [False, True])
async def test_raw_prompt_is_continued_by_the_route_of_completions(streams: bool) -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [{"a": -0.5, "b": -1}], "text_offset": [0]}
    bodies = raw_completion("a", "b", "c", logprobs=logprobs) if streams else raw_completion("abc", logprobs=logprobs)
    async with lab(lambda _: events(*bodies) if streams else RawAnswer(body=bodies[0])) as rig:
        rig.server.route = "/v1/completions"
        chunks = await rig.chunks(stream=streams, prompt="Once", messages=[], logprobs=2)
    sent = rig.server.requests[0]
    assert (sent["prompt"], sent["logprobs"], "messages" in sent) == ("Once", 2, False)
    assert "".join(part.text for part in chunks) == "abc"
    token = next(part for part in chunks if part.logprobs).logprobs[0]
    assert (token.text, token.logprob, [(other.text, other.logprob) for other in token.top]) == ("a", -9999.0, [("a", -0.5), ("b", -1)])


@pytest.mark.parametrize(
    "answer",
    [RawAnswer(404, {"detail": "Not Found"}), error("This is a chat model and not supported in the v1/completions endpoint.", 404)],
    ids=["no route", "OpenAI"],
)
async def test_server_that_continues_no_raw_prompt_is_reported(answer: RawAnswer) -> None:
    async with lab(lambda _: answer) as rig:
        with pytest.raises(PermanentError, match="prompt") as raised:
            await rig.chunks(prompt="Once", messages=[])
    assert raised.value.code == "parameter-unsupported"
