"""The prompt and the answers of vLLM in the worker, with a real tokenizer; tests/conformance/test_text_engines.py runs the whole engine."""

from types import SimpleNamespace
from typing import Any

import pytest

from actors.engines.language.chat_format import RenderedPrompt
from actors.engines.language.requests import GenerationChunk, GenerationRequest, PromptTooLong
from actors.engines.language.tiny_llama import CHAT_TEMPLATE, TURN_TOKEN, byte_tokenizer
from actors.engines.vllm.answers import VllmAnswer
from actors.engines.vllm.engine import VllmOptions, VllmTextEngine, cuts_in_worker
from bus.errors import PermanentError

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT_TEMPLATE
SYSTEM, USER = ({"role": role, "content": "hello"} for role in ("system", "user"))


@pytest.fixture(scope="module")
def engine() -> VllmTextEngine:
    """With a tokenizer whose chat template accepts no system message, and a context of 64 tokens."""
    tokenizer = byte_tokenizer(TURN_TOKEN, chat_template=NO_SYSTEM)
    engine = VllmTextEngine(VllmOptions("tiny"), lambda reason: None)
    engine._engine = SimpleNamespace(get_tokenizer=lambda: tokenizer, model_config=SimpleNamespace(max_model_len=64))
    engine._read_tokenizer(tokenizer)
    return engine


def request_of(*messages: dict[str, Any], **fields: Any) -> GenerationRequest:
    return GenerationRequest(list(messages), 10, 0, 1, **fields)


def test_messages_and_raw_prompts_become_tokens(engine: VllmTextEngine) -> None:
    assert len(engine._render(request_of(USER)).ids) > len("hello")
    assert len(engine._render(request_of(prompt="hello")).ids) == len("hello")


def test_control_words_of_a_raw_prompt_are_removed(engine: VllmTextEngine) -> None:
    assert engine._render(request_of(prompt=f"hel{TURN_TOKEN}lo")).ids == engine._render(request_of(prompt="hello")).ids


@pytest.mark.parametrize("messages", [[SYSTEM, USER], [{"role": "user", "content": "a\ud800b"}]])
def test_messages_that_the_template_rejects_are_unreadable(engine: VllmTextEngine, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(PermanentError) as raised:
        engine._render(request_of(*messages))
    assert raised.value.code == "prompt-unreadable"


def test_long_prompt_is_refused_before_it_is_tokenized(engine: VllmTextEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._engine, "get_tokenizer", None)
    with pytest.raises(PromptTooLong):
        engine._render(request_of({"role": "user", "content": "x" * 2000}))


TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


def outputs_of(*texts: str, finish: str = "stop", logprobs: Any = None) -> list[Any]:
    """The outputs of vLLM, one token each."""
    ends = [None] * (len(texts) - 1) + [finish]
    return [
        SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=[7], finish_reason=end, logprobs=logprobs)], num_cached_tokens=32)
        for text, end in zip(texts, ends, strict=True)
    ]


def read_answer(request: GenerationRequest, outputs: list[Any], *, thinks: bool = False) -> list[GenerationChunk]:
    answer = VllmAnswer(request, RenderedPrompt([1, 2, 3]), [b"x"] * 8, thinks=thinks)
    return [*map(answer.push, outputs), answer.last_chunk()]


def test_calls_and_reasoning_are_taken_out_of_the_text() -> None:
    texts = ["<think>", "hm", "</think>", "On it. ", '<tool_call>\n{"name": "clo', 'ck", "arguments": {"a"', ": 1}}\n</tool_call>"]
    chunks = read_answer(request_of(USER, tools=(TOOL,)), outputs_of(*texts), thinks=True)
    assert ("".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks).strip()) == ("hm", "On it.")
    parts = [part for chunk in chunks for part in chunk.tool_calls]
    assert (parts[0].name, "".join(part.arguments for part in parts)) == ("clock", '{"a": 1}')
    last = chunks[-1]
    assert (last.finish_reason, last.completion_tokens, last.prompt_tokens, last.cached_tokens) == ("tool_calls", 7, 3, 32)
    assert 0 < last.reasoning_tokens < 4


def test_answer_that_is_cut_says_so() -> None:
    (*_, last) = read_answer(request_of(USER, tools=(TOOL,)), outputs_of('<tool_call>\n{"name": "clock", "arguments": {', finish="length"))
    assert last.finish_reason == "length"


def test_likeliest_tokens_are_sorted_and_the_chosen_one_is_no_more_than_one_of_them() -> None:
    place = {7: SimpleNamespace(logprob=-3.0), 1: SimpleNamespace(logprob=-2.0), 2: SimpleNamespace(logprob=float("-inf"))}
    (chunk, _) = read_answer(request_of(USER, logprobs=2), outputs_of("x", logprobs=[place]))
    (token,) = chunk.logprobs
    assert (token.text, token.logprob, token.bytes) == ("x", -3.0, [120])
    assert [other.logprob for other in token.top] == [-2.0, -3.0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"tools": (TOOL,)}, True),
        ({"tools": (TOOL,), "tool_choice": "none"}, False),
        ({"tools": (TOOL,), "tool_choice": "required"}, False),
        ({"tools": (TOOL,), "schema": {"type": "object"}}, False),
    ],
)
def test_stop_sequences_cut_no_calls(engine: VllmTextEngine, fields: dict[str, Any], expected: bool) -> None:
    assert cuts_in_worker(request_of(USER, stop=('"',), **fields)) is expected
