"""The prompt of vLLM in the worker, with a real tokenizer; tests/integration/test_vllm_in_process.py runs the whole engine."""

from types import SimpleNamespace
from typing import Any

import pytest

from actors.engines.language.requests import PromptTooLong
from actors.engines.language.tiny_llama import CHAT_TEMPLATE, TURN_TOKEN, byte_tokenizer
from actors.engines.vllm.engine import VllmOptions, VllmTextEngine
from bus.errors import PermanentError

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT_TEMPLATE
SYSTEM, USER = ({"role": role, "content": "hello"} for role in ("system", "user"))


@pytest.fixture(scope="module")
def engine() -> VllmTextEngine:
    """With a tokenizer whose chat template accepts no system message, and a context of 64 tokens."""
    tokenizer = byte_tokenizer(TURN_TOKEN, chat_template=NO_SYSTEM)
    engine = VllmTextEngine(VllmOptions("tiny"), lambda reason: None)
    engine._engine = SimpleNamespace(get_tokenizer=lambda: tokenizer, model_config=SimpleNamespace(max_model_len=64))
    return engine


def test_messages_become_tokens(engine: VllmTextEngine) -> None:
    assert len(engine._tokenize([USER])) > len("hello")


@pytest.mark.parametrize("messages", [[SYSTEM, USER], [{"role": "user", "content": "a\ud800b"}]])
def test_messages_that_the_template_rejects_are_unreadable(engine: VllmTextEngine, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(PermanentError) as raised:
        engine._tokenize(messages)
    assert raised.value.code == "prompt-unreadable"


def test_long_prompt_is_refused_before_it_is_tokenized(engine: VllmTextEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._engine, "get_tokenizer", None)
    with pytest.raises(PromptTooLong):
        engine._tokenize([{"role": "user", "content": "x" * 2000}])
