"""Public reports of servers that refuse what OpenAI's clients send: histories, parameters and forms that OpenAI's API takes.

Each case is sent to our `/v1/chat/completions`. What is refused is a 400 whose `param` names the field.
"""

import base64
import io
import json
from typing import Any, cast

import pytest
from PIL import Image

from bus.storage.claim_store import ClaimStore
from contracts.text import Text
from tests.support.fake_text_actor import text_result
from tests.unit.gateway.conftest import FakeGateway, OpenFakeGateway, gateway  # noqa: F401 - a fixture
from tests.unit.gateway.text.test_uploads import FakeStore

pytestmark = pytest.mark.timeout(60)
PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
}


def answered(content: Any, **fields: Any) -> list[dict[str, Any]]:
    """A history with an answer of the assistant."""
    return [USER, {"role": "assistant", "content": content} | fields, USER]


def png() -> str:
    with io.BytesIO() as file:
        Image.new("RGB", (40, 40), "red").save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture
def fake(gateway: OpenFakeGateway) -> FakeGateway:  # noqa: F811
    """A gateway whose text worker answers, and which has a store for pictures."""
    reply = text_result(Text(message="hi"), "answer", None)
    return gateway({"text": reply.model_dump(mode="json")}, store=cast("ClaimStore", FakeStore()), request_seconds=5)


async def post(fake: FakeGateway, messages: list[Any] | None = None, **fields: Any) -> Any:
    return await fake.http.post(PATH, json={"model": "text", "messages": [USER] if messages is None else messages} | fields)


HISTORIES = [
    pytest.param([USER, {"role": "assistant", "content": ""}, USER], [""], id="vllm-project/vllm #21089: an empty answer"),
    pytest.param([USER, {"role": "assistant", "content": None}, USER], [""], id="tashfeenahmed/freellmapi #165: content is null"),
    pytest.param([USER, {"role": "assistant"}, USER], [""], id="no content"),
    pytest.param(answered(None, refusal="I will not."), ["I will not."], id="a refusal"),
    pytest.param(answered("a", refusal=None), ["a"], id="anomalyco/opencode #43467: refusal is null"),
    pytest.param(
        answered([{"type": "refusal", "refusal": "No."}]),
        [[{"text": "No."}]],
        id="a refusal as a part",
    ),
    pytest.param(answered("a", tool_calls=[], function_call=None), ["a"], id="no tool calls"),
    pytest.param(
        answered([{"type": "output_text", "text": "Hello!"}]),
        [[{"text": "Hello!"}]],
        id="anomalyco/opencode #42613: parts of the Responses API",
    ),
    pytest.param(
        answered([{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}]),
        [[{"text": "a"}]],
        id="ROCm/ATOM PR #2188: reasoning in the history",
    ),
    pytest.param(answered("a", annotations=[], audio=None, parsed={}, provider_specific_fields={}), ["a"], id="what clients keep"),
    pytest.param([*answered("a")[:2], {"role": "system", "content": "s"}, USER], ["a", "s"], id="a later system message"),
    pytest.param([{"role": "developer", "content": "d"}, USER | {"name": "Ann"}], ["hi"], id="developer, and a name"),
]


@pytest.mark.parametrize(("messages", "expected"), HISTORIES)
async def test_history_is_taken_as_openai_takes_it(fake: FakeGateway, messages: list[Any], expected: list[Any]) -> None:
    response = await post(fake, messages)
    assert response.status_code == 200, response.text
    (command,) = fake.publisher.commands("text")
    contents = [message["content"] for message in command["messages"][1:]]
    assert contents[: len(expected)] == expected
    assert {message["role"] for message in command["messages"]} <= {"system", "user", "assistant"}


CALL = {"id": "call_1", "name": "weather", "arguments": '{"city": "Paris"}'}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "18"}
OLD_CALL = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "call", "result"),
    [
        pytest.param(
            [USER, CALLED, RESULT],
            CALL,
            {"content": "18", "tool_call_id": "call_1", "name": "weather"},
            id="lmstudio-ai/lmstudio-bug-tracker #261, NVIDIA/NeMo-Agent-Toolkit #2068, can1357/oh-my-pi #5121: a tool was called",
        ),
        pytest.param(
            [USER, CALLED | {"content": ""}, {"role": "tool", "content": [{"type": "text", "text": "18"}]}],
            CALL,
            {"content": [{"text": "18"}], "tool_call_id": "call_1", "name": "weather"},
            id="CherryHQ/cherry-studio #13206: the result as a list of parts, without an id",
        ),
        pytest.param(
            [USER, OLD_CALL, {"role": "function", "name": "f", "content": "1"}],
            {"id": "messages_1_tool_calls_0", "name": "f", "arguments": "{}"},
            {"content": "1", "tool_call_id": "messages_1_tool_calls_0", "name": "f"},
            id="linagora/openrag PR #833: functions, as before the tools",
        ),
        pytest.param(
            [
                USER,
                CALLED | {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
                RESULT,
            ],
            CALL | {"arguments": "{}"},
            {"content": "18", "tool_call_id": "call_1", "name": "weather"},
            id="no arguments",
        ),
    ],
)
async def test_calls_and_results_keep_their_ids(
    fake: FakeGateway, messages: list[Any], call: dict[str, Any], result: dict[str, Any]
) -> None:
    """A tool that was called is in the command as a call and its result, not as text."""
    response = await post(fake, [*messages, USER])
    assert response.status_code == 200, response.text
    (command,) = fake.publisher.commands("text")
    assert command["messages"][1:3] == [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool"} | result]
    Text.model_validate(command)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"content": "a", "reasoning_content": "hm"}, id="DeepSeek's name"),
        pytest.param({"content": "a", "reasoning": "hm"}, id="another name"),
        pytest.param({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}, id="a part"),
    ],
)
async def test_reasoning_of_the_history_is_passed_on(fake: FakeGateway, message: dict[str, Any]) -> None:
    await post(fake, [USER, {"role": "assistant"} | message, USER])
    assert fake.publisher.commands("text")[0]["messages"][1]["reasoning"] == "hm"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"max_tokens": -1}, id="eternalai-org/eternal-zoo PR #14: max_tokens -1"),
        pytest.param({"max_tokens": None, "max_completion_tokens": None}, id="openai/openai-openapi #28: null"),
        pytest.param({"n": None, "stop": None, "stream": None, "seed": None, "response_format": None, "tools": None}, id="null everywhere"),
        pytest.param({"tools": [], "tool_choice": "none", "functions": [], "parallel_tool_calls": True}, id="no tools"),
        pytest.param({"logit_bias": {}, "logprobs": False, "top_logprobs": None}, id="vllm-project/vllm PR #1045: an empty logit_bias"),
        pytest.param(
            {"tool_choice": "auto", "function_call": "none", "best_of": 1, "modalities": ["text"], "top_logprobs": 0, "guided_json": None},
            id="what is the default all the same",
        ),
        pytest.param({"guided_choice": [], "structured_outputs": {}, "top_k": -1, "min_p": 0, "reasoning_effort": "low"}, id="no grammar"),
        pytest.param({"no_field_of_ours": None}, id="an unknown field that is null"),
        pytest.param({"stop": []}, id="langtail/langtail-node PR #42: an empty stop"),
        pytest.param({"stop": ["", "x"]}, id="an empty stop sequence"),
        pytest.param({"top_p": 0}, id="huggingface/text-generation-inference PR #2231: top_p 0"),
        pytest.param({"temperature": 0, "top_p": 1.0}, id="the ends of the ranges"),
        pytest.param({"stream_options": {"include_usage": True}}, id="stream_options without a stream"),
        pytest.param({"metadata": {}, "user": "u", "store": False, "service_tier": "auto"}, id="fields of OpenAI's own"),
        pytest.param(
            {"safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h", "verbosity": "medium", "prediction": {}},
            id="later ones",
        ),
        pytest.param({"max_tokens": 16.0, "temperature": "0.5"}, id="numbers in other forms"),
        pytest.param({"response_format": {"type": "text"}}, id="lmstudio-ai/lmstudio-bug-tracker #307: a format of text"),
    ],
)
async def test_parameters_are_taken_as_openai_takes_them(fake: FakeGateway, fields: dict[str, Any]) -> None:
    response = await post(fake, **fields)
    assert response.status_code == 200, response.text
    (command,) = fake.publisher.commands("text")
    Text.model_validate(command)
    assert command.get("max_tokens", 16) == 16


@pytest.mark.parametrize(
    "image",
    [
        pytest.param({"type": "image_url", "image_url": {"url": png(), "detail": "high"}}, id="with a detail"),
        pytest.param({"type": "image_url", "image_url": png()}, id="laurent22/joplin PR #16141, xenodium/chatgpt-shell #327: a plain URL"),
        pytest.param({"type": "input_image", "image_url": png()}, id="openai/openai-agents-python PR #2799: the Responses API's part"),
        pytest.param({"type": "image_url", "image_url": {"url": png().replace("base64,", "base64,\n")}}, id="with a line end"),
    ],
)
async def test_image_is_taken_in_every_form(fake: FakeGateway, image: dict[str, Any]) -> None:
    response = await post(fake, [{"role": "user", "content": [{"type": "text", "text": "x"}, image]}])
    assert response.status_code == 200, response.text
    text, picture = fake.publisher.commands("text")[0]["messages"][0]["content"]
    assert (text, list(picture)) == ({"text": "x"}, ["picture"])


async def test_schema_beside_json_object_is_not_lost(fake: FakeGateway) -> None:
    """llama.cpp, Together and others take the schema of `json_object` beside its type."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await post(fake, response_format={"type": "json_object", "schema": schema})
    assert fake.publisher.commands("text")[0]["json_schema"] == schema


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
REFUSED = [
    pytest.param({"messages": [{"role": "user", "content": None}]}, "messages.0.content", id="no content of a user"),
    pytest.param({"messages": [USER, {"role": "tool"}]}, "messages.1.content", id="no content of a tool"),
    pytest.param({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages.1.role", id="an unknown role"),
    pytest.param({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0.type", id="audio"),
    pytest.param({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", id="a part without text"),
    pytest.param({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.image_url", id="no image"),
    pytest.param(
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "ftp://x"}]}]},
        "messages.0.content.0.image_url.url",
        id="another address",
    ),
    pytest.param({"messages": []}, "messages", id="no messages"),
    pytest.param({"max_tokens": 0}, "max_tokens", id="ai-dynamo/dynamo PR #11394: max_tokens 0"),
    pytest.param({"max_completion_tokens": "many"}, "max_completion_tokens", id="openclaw/openclaw PR #116563"),
    pytest.param({"messages": [USER, {"role": "tool", "content": "18"}]}, "messages.1.tool_call_id", id="the result of no call"),
    pytest.param({"messages": [USER | {"weight": 1}]}, "messages.0.weight", id="an unknown field of a message"),
    pytest.param({"max_token": 5}, "max_token", id="a misspelt field"),
    pytest.param({"n": 17}, "n", id="too many answers"),
    pytest.param({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type", id="a tool without a schema"),
    pytest.param({"tools": [TOOL, TOOL]}, "tools", id="two tools with one name"),
    pytest.param({"tools": [TOOL], "functions": [TOOL["function"]]}, "functions", id="tools in two forms"),
    pytest.param({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", id="another tool"),
    pytest.param({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function", id="a tool without a name"),
    pytest.param({"tools": [TOOL], "tool_choice": {"type": "robot"}}, "tool_choice.type", id="another choice"),
    pytest.param({"top_logprobs": 3}, "top_logprobs", id="the likeliest tokens without log probabilities"),
    pytest.param({"logprobs": True, "top_logprobs": 21}, "top_logprobs", id="too many of the likeliest tokens"),
    pytest.param({"store": True}, "store", id="a stored answer"),
    pytest.param({"service_tier": "priority"}, "service_tier", id="priority"),
    pytest.param({"verbosity": "low"}, "verbosity", id="a short answer"),
    pytest.param({"reasoning_effort": "extreme"}, "reasoning_effort", id="another effort"),
    pytest.param({"web_search_options": {}}, "web_search_options", id="a search"),
    pytest.param({"audio": {"voice": "v", "format": "wav"}}, "audio", id="a voice"),
    pytest.param({"top_k": 5}, "top_k", id="vLLM's top_k"),
    pytest.param({"tool_choice": "required"}, "tool_choice", id="a tool call that is required"),
    pytest.param({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", id="a tool call that is named"),
    pytest.param({"function_call": {"name": "f"}}, "function_call", id="a function call that is named"),
    pytest.param({"logit_bias": {"50256": -100}}, "logit_bias", id="a bias"),
    pytest.param({"best_of": 3}, "best_of", id="the best of three"),
    pytest.param({"modalities": ["text", "audio"]}, "modalities.1", id="a spoken answer"),
    pytest.param({"guided_json": {"type": "object"}}, "guided_json", id="vLLM's older schema"),
    pytest.param({"guided_regex": "[a-z]+"}, "guided_regex", id="vLLM's older pattern"),
    pytest.param({"structured_outputs": {"choice": ["a"]}}, "structured_outputs", id="vLLM's grammar"),
    pytest.param({"stop": ["1", "2", "3", "4", "5"]}, "stop", id="five stop sequences"),
    pytest.param({"response_format": {"type": "grammar"}}, "response_format.type", id="another format"),
    pytest.param({"response_format": {"type": "json_schema"}}, "response_format.json_schema", id="a schema that is missing"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_what_is_refused_names_its_field(fake: FakeGateway, fields: dict[str, Any], param: str) -> None:
    response = await post(fake, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "text", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "text", "messages": [{"role": "user", "content": "x"}], "seed": 1e999}',
        b'{"model": "text", "messages": [{"role": "user", "content": "\xff"}]}',
        b"",
        b"[]",
        b"null",
    ],
)
async def test_what_is_no_json_is_refused(fake: FakeGateway, body: bytes) -> None:
    response = await fake.http.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_byte_order_mark_is_dropped(fake: FakeGateway) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"model": "text", "messages": [USER]}).encode()
    assert (await fake.http.post(PATH, content=body, headers={"Content-Type": "application/json"})).status_code == 200
