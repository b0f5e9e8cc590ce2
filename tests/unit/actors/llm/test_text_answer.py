"""Several answers of one request: their seeds, deltas, token counts, and what ends them all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from actors.attachments.documents import DocumentReader
from actors.engines.language.requests import EngineState, FinishReason, GenerationChunk, GenerationRequest
from actors.llm import request_checks
from actors.llm.prompt_builder import PromptBuilder
from actors.llm.settings import TextSettings
from actors.llm.text_answer import MAX_TOGETHER, TextDependencies, answer_text
from actors.settings import AttachmentSettings
from bus.errors import CallerGone, PermanentError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.text import Text, TextDelta, TextDone, TokenLogprob, ToolCallDelta
from tests.support.actor_context import make_context

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}]}
TOOLS = [{"name": name, "parameters": {"type": "object"}} for name in ("weather", "clock")]
Chunks = list[GenerationChunk]
Ask = Callable[..., Awaitable[TextDone]]


def words(request: GenerationRequest) -> Chunks:
    return [GenerationChunk("a ", 1), GenerationChunk(f"{request.seed}", 2), last_chunk()]


def last_chunk(reason: FinishReason = "stop", **fields: Any) -> GenerationChunk:
    return GenerationChunk("", 2, reason, 7, **fields)


@dataclass
class ScriptedEngine:
    """`script`: the chunks of a request; an exception among them is raised. `open`: generations that have not ended."""

    script: Callable[[GenerationRequest], list[Any]] = words
    name: str = "scripted"
    requests: list[GenerationRequest] = field(default_factory=list)
    open: int = 0

    async def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncIterator[GenerationChunk]:
        self.requests.append(request)
        self.open += 1
        try:
            for chunk in self.script(request):
                await asyncio.sleep(0)
                if chunk == "endless":
                    await asyncio.Event().wait()
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
        finally:
            self.open -= 1

    async def ready(self) -> str:
        return "tiny"

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        return None

    async def vision(self) -> bool | None:
        return None

    async def state(self) -> EngineState:
        return EngineState()


@dataclass
class Caller:
    """Collects the deltas; leaves after `patience` of them."""

    deltas: list[TextDelta] = field(default_factory=list)
    patience: int = 1000

    async def send_delta(self, delta: Any) -> None:
        await asyncio.sleep(0)
        if len(self.deltas) == self.patience:
            raise CallerGone("nobody awaits the reply any more")
        self.deltas.append(delta)


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    async def ask(engine: ScriptedEngine, caller: Caller | None = None, **fields: Any) -> TextDone:
        context, attachments = make_context(), AttachmentSettings()
        if caller:
            context, fields = replace(context, send_delta=caller.send_delta), fields | {"stream": True}
        async with open_claim_store(StoreSettings.model_validate({"STORE_URL": tmp_path.as_uri()})) as claims:
            prompts = PromptBuilder(claims, DocumentReader(attachments), attachments)
            chat = {} if "raw_prompt" in fields else CHAT
            return await answer_text(Text.model_validate(chat | fields), context, TextDependencies(engine, prompts, TextSettings()))

    return ask


async def test_each_answer_has_its_seed_and_the_prompt_counts_once(ask: Ask) -> None:
    def script(request: GenerationRequest) -> Chunks:
        figures: dict[str, Any] = {"cached_tokens": 0 if request.seed == 3 else 6, "reasoning_tokens": 1, "device_seconds": 0.25}
        return [*words(request)[:-1], last_chunk(**figures)]

    done = await ask(ScriptedEngine(script), n=3, seed=3)
    assert [answer.response for answer in done.answers] == ["a 3", "a 4", "a 5"]
    assert (done.response, done.device_seconds) == ("a 3", 0.75)
    assert done.usage.model_dump() == {
        "prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13, "cached_tokens": 0, "reasoning_tokens": 3,
    }  # fmt: skip
    assert done.model_info.timings.tokens_generated == 6


async def test_largest_seed_is_followed_by_the_smallest(ask: Ask) -> None:
    engine = ScriptedEngine()
    await ask(engine, n=2, seed=2**63 - 1)
    assert [request.seed for request in engine.requests] == [2**63 - 1, -(2**63)]


async def test_one_answer_is_no_list_and_its_device_time_may_be_unknown(ask: Ask) -> None:
    done = await ask(ScriptedEngine(), seed=1)
    assert (done.response, done.answers, done.device_seconds) == ("a 1", [], None)


async def test_deltas_of_all_answers_are_numbered_in_the_order_in_which_they_are_sent(ask: Ask) -> None:
    caller = Caller()
    done = await ask(ScriptedEngine(), caller, n=4, seed=0)
    assert [delta.sequence for delta in caller.deltas] == list(range(8))
    assert done.deltas == 8
    for choice in range(4):
        assert "".join(delta.delta for delta in caller.deltas if delta.choice == choice) == done.answers[choice].response
    assert [delta.choice for delta in caller.deltas[:4]] == [0, 1, 2, 3], "they are not interleaved"


@pytest.mark.parametrize("n", [1, 3])
async def test_answers_end_when_one_fails(ask: Ask, n: int) -> None:
    def script(request: GenerationRequest) -> list[Any]:
        return [PermanentError("server-refused", "no") if request.seed == n - 1 else "endless"]

    engine = ScriptedEngine(script)
    with pytest.raises(PermanentError, match="no"):
        await asyncio.wait_for(ask(engine, n=n, seed=0), 10)
    assert (len(engine.requests), engine.open) == (n, 0)


async def test_answers_end_when_the_caller_leaves(ask: Ask) -> None:
    engine = ScriptedEngine(lambda request: [GenerationChunk("a", 1), GenerationChunk("b", 2), "endless"])
    with pytest.raises(CallerGone):
        await asyncio.wait_for(ask(engine, Caller(patience=3), n=3), 10)
    assert engine.open == 0


async def test_tool_calls_are_put_together_from_their_parts(ask: Ask) -> None:
    parts = [
        ToolCallDelta(index=1, id="call_b", name="clock"), ToolCallDelta(index=0, id="call_a", name="weather", arguments='{"city":'),
        ToolCallDelta(index=1, arguments="{}"), ToolCallDelta(index=0, arguments=' "서울"}'),
    ]  # fmt: skip
    chunks = [GenerationChunk("", 1, reasoning="hm"), *(GenerationChunk("", 1, tool_calls=(part,)) for part in parts)]
    caller, engine = Caller(), ScriptedEngine(lambda _: [*chunks, last_chunk("tool_calls")])
    done = await ask(engine, caller, tools=TOOLS, tool_choice="required")
    assert [(call.id, call.name, call.arguments) for call in done.tool_calls] == [
        ("call_a", "weather", '{"city": "서울"}'), ("call_b", "clock", "{}"),
    ]  # fmt: skip
    assert (done.finish_reason, done.reasoning, done.response) == ("tool_calls", "hm", "")
    assert [part for delta in caller.deltas for part in delta.tool_calls] == parts
    assert caller.deltas[0].reasoning == "hm"
    assert engine.requests[0].tools[0] == {"type": "function", "function": TOOLS[0]}


@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {"tool_name": "clock"}])
async def test_required_call_that_is_missing_is_an_error(ask: Ask, fields: dict[str, Any]) -> None:
    weather = GenerationChunk("", 1, tool_calls=(ToolCallDelta(index=0, id="call_a", name="weather", arguments="{}"),))
    chunks = [weather] if "tool_name" in fields else []
    with pytest.raises(PermanentError, match=next(iter(fields))) as raised:
        await ask(ScriptedEngine(lambda _: [*chunks, last_chunk()]), tools=TOOLS, **fields)
    assert raised.value.code == "tool-call-missing"


async def test_answer_that_is_cut_in_its_text_has_no_call_to_come(ask: Ask) -> None:
    """A server that obeys writes no text before a required call; it may be cut in its reasoning."""
    text = ScriptedEngine(lambda _: [GenerationChunk("Sure", 1), last_chunk("length")])
    with pytest.raises(PermanentError, match="tool_choice"):
        await ask(text, tools=TOOLS, tool_choice="required")
    reasoning = ScriptedEngine(lambda _: [GenerationChunk("", 1, reasoning="hm"), last_chunk("length")])
    done = await ask(reasoning, tools=TOOLS, tool_choice="required")
    assert (done.finish_reason, done.reasoning, done.tool_calls) == ("length", "hm", [])


async def test_answer_with_calls_is_not_checked_for_the_json_of_a_text(ask: Ask) -> None:
    call = GenerationChunk("", 1, tool_calls=(ToolCallDelta(index=0, id="call_a", name="weather", arguments="{}"),))
    done = await ask(ScriptedEngine(lambda _: [call, last_chunk("tool_calls")]), tools=TOOLS, json_only=True)
    assert (len(done.tool_calls), done.response_is_json) == (1, False)


async def test_log_probabilities_are_those_of_the_answer_and_none_unless_requested(ask: Ask) -> None:
    token = TokenLogprob(text="a", logprob=-0.5)
    engine = ScriptedEngine(lambda _: [GenerationChunk("a", 1, logprobs=(token,)), last_chunk()])
    caller = Caller()
    assert (await ask(engine, caller, with_logprobs=True, top_logprobs=2)).logprobs == [token]
    assert caller.deltas[0].logprobs == [token]
    assert engine.requests[0].logprobs == 2
    assert (await ask(ScriptedEngine())).logprobs is None


async def test_raw_prompt_has_no_messages(ask: Ask) -> None:
    engine = ScriptedEngine()
    await ask(engine, raw_prompt="Once upon a")
    assert (engine.requests[0].prompt, engine.requests[0].messages) == ("Once upon a", [])


async def test_messages_of_tools_reach_the_engine_in_the_form_of_openai(ask: Ask) -> None:
    call = {"id": "call_1", "name": "weather", "arguments": '{"city": "Oslo"}'}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "tool_calls": [call], "reasoning": "look it up"},
        {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "rain"},
    ]
    engine = ScriptedEngine()
    await ask(engine, messages=messages)
    function = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    assert engine.requests[0].messages == [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [function], "reasoning_content": "look it up"},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1", "name": "weather"},
    ]


async def test_answers_of_one_request_take_turns(ask: Ask) -> None:
    """So that a request with many leaves places in the engine for others."""
    most = 0

    class CountingEngine(ScriptedEngine):
        async def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncIterator[GenerationChunk]:
            nonlocal most
            async for chunk in super().generate(request, deadline):
                most = max(most, self.open)
                yield chunk

    done = await ask(CountingEngine(), n=16, seed=3)
    assert [answer.response for answer in done.answers] == [f"a {seed}" for seed in range(3, 19)]
    assert most == MAX_TOGETHER


async def test_schemas_are_checked_once_for_all_answers(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Any] = []
    check = request_checks.check_schema

    async def record(schema: Any, tenant: str) -> None:
        checked.append(schema)
        await check(schema, tenant)

    monkeypatch.setattr(request_checks, "check_schema", record)
    await ask(ScriptedEngine(name="embedded"), n=5, tools=TOOLS)
    assert checked == [tool["parameters"] for tool in TOOLS]


async def test_only_fields_of_the_command_are_reported_as_left_out(ask: Ask) -> None:
    """The worker sends temperature and top_p in any case."""
    last = GenerationChunk("a", 1, "stop", left_out=("temperature", "top_p", "seed"))
    done = await ask(ScriptedEngine(lambda _: [last]), temperature=0.5, seed=None)
    assert done.model_info.left_out == ["temperature"]
    assert (await ask(ScriptedEngine(lambda _: [last]))).model_info.left_out is None
