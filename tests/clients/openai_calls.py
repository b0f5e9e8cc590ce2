"""The calls of the official client for Python. Each takes the client and asserts what it returns."""

import base64
import time
from typing import Any, Literal

from calls import CITY_SCHEMA, MESSAGES, PICTURE, TOOL, Calls, arguments_of
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

calls = Calls("openai (Python)")


class Weather(BaseModel):
    """The structured answer that `parse` requests."""

    city: Literal["Seoul", "Paris"]
    is_warm: bool


@calls.add("models")
def list_models(client: OpenAI) -> None:
    assert any(model.id for model in client.models.list())


@calls.add("chat")
def create(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="text", messages=MESSAGES, max_completion_tokens=8)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.choices[0].finish_reason in {"stop", "length"}


@calls.add("chat, role `developer`")
def developer_role(client: OpenAI) -> None:
    messages: Any = [{"role": "developer", "content": "Be short."}, *MESSAGES]
    assert client.chat.completions.create(model="text", messages=messages, max_tokens=8).choices[0].message.role == "assistant"


@calls.add("chat, streamed")
def stream(client: OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="text", messages=MESSAGES, max_tokens=8, stream=True, stream_options=options))
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-2].choices[0].finish_reason


@calls.add("chat, `n`")
def several_answers(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="text", messages=MESSAGES, max_tokens=8, n=3, temperature=1.5)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]


@calls.add("chat, `logprobs`")
def logprobs(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="text", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=3)
    tokens = completion.choices[0].logprobs.content
    assert tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)


@calls.add("chat, tools")
def tools(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="text", messages=MESSAGES, max_tokens=256, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    )
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert arguments_of(choice.message.tool_calls[0].function.arguments)


@calls.add("chat, tools streamed")
def streamed_tools(client: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    chunks = client.chat.completions.create(
        model="text", messages=MESSAGES, max_tokens=256, tools=[TOOL], tool_choice=named, parallel_tool_calls=False, stream=True
    )
    parts = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or ()]
    assert parts[0].id
    assert arguments_of("".join(part.function.arguments or "" for part in parts))


@calls.add("chat, results of tools")
def tool_result(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Seoul"}'}}
    messages: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12 °C"},
    ]
    assert client.chat.completions.create(model="text", messages=messages, max_tokens=8, tools=[TOOL]).choices


@calls.add("chat, JSON schema")
def json_schema(client: OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY_SCHEMA, "strict": True}}
    completion = client.chat.completions.create(model="text", messages=MESSAGES, max_tokens=256, response_format=schema)
    assert arguments_of(completion.choices[0].message.content)


@calls.add("chat, structured output")
def parse(client: OpenAI) -> None:
    completion = client.chat.completions.parse(model="text", messages=MESSAGES, max_tokens=256, response_format=Weather)
    assert isinstance(completion.choices[0].message.parsed, Weather)


@calls.add("chat, structured output with tools sent back")
def parse_tools(client: OpenAI) -> None:
    """The message is kept as the client returns it: its calls also have `parsed_arguments`."""
    named: Any = {"type": "function", "function": {"name": "Weather"}}
    tools: Any = [pydantic_function_tool(Weather)]
    completion = client.chat.completions.parse(model="text", messages=MESSAGES, max_tokens=256, tools=tools, tool_choice=named)
    message = completion.choices[0].message
    assert isinstance(message.tool_calls[0].function.parsed_arguments, Weather)
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12 °C"}
    messages: Any = [*MESSAGES, message, result]
    assert client.chat.completions.create(model="text", messages=messages, max_tokens=8, tools=tools, tool_choice="none").choices


@calls.add("completions")
def completion(client: OpenAI) -> None:
    answer = client.completions.create(model="text", prompt="Once upon a time", max_tokens=8, n=2)
    assert len(answer.choices) == 2


@calls.add("embeddings")
def embeddings(client: OpenAI) -> None:
    answer = client.embeddings.create(model="embedding", input=["one", "two"])
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) == len(answer.data[1].embedding) > 0


@calls.add("moderations")
def moderations(client: OpenAI) -> None:
    calm, flagged = client.moderations.create(input=["a calm sea", "a forbiddenword here"]).results
    assert (calm.flagged, flagged.flagged) == (False, True)


@calls.add("responses")
def response(client: OpenAI) -> None:
    answer = client.responses.create(model="text", input="Hello", instructions="Be short.", max_output_tokens=16)
    assert answer.status in {"completed", "incomplete"}
    assert client.responses.retrieve(answer.id).output_text == answer.output_text
    assert client.responses.input_items.list(answer.id).data
    client.responses.delete(answer.id)


@calls.add("responses, streamed")
def streamed_response(client: OpenAI) -> None:
    with client.responses.stream(model="text", input="Hello", max_output_tokens=16) as events:
        assert [event.type for event in events][-1] in {"response.completed", "response.incomplete"}


@calls.add("responses, `previous_response_id`")
def next_response(client: OpenAI) -> None:
    first = client.responses.create(model="text", input="Hello", max_output_tokens=16)
    second = client.responses.create(model="text", input="Again", previous_response_id=first.id, max_output_tokens=16)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens


@calls.add("responses, tools")
def response_tools(client: OpenAI) -> None:
    tool: Any = {"type": "function", **TOOL["function"], "strict": True}
    answer = client.responses.create(model="text", input="Weather?", tools=[tool], tool_choice="required", max_output_tokens=256)
    (call, *_) = [item for item in answer.output if item.type == "function_call"]
    assert arguments_of(call.arguments)


@calls.add("responses, structured output")
def parsed_response(client: OpenAI) -> None:
    assert isinstance(
        client.responses.parse(model="text", input="Weather?", text_format=Weather, max_output_tokens=256).output_parsed, Weather
    )


@calls.add("responses, background stream resumed")
def resumed_stream(client: OpenAI) -> None:
    events = list(client.responses.create(model="text", input="Hello", stream=True, background=True, max_output_tokens=32))
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(len(events)))
    rest = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=2))
    assert [event.sequence_number for event in rest] == numbers[3:]


@calls.add("responses, cancelled")
def cancelled_response(client: OpenAI) -> None:
    answer = client.responses.create(model="text", input="Hello", background=True, max_output_tokens=512)
    deadline = time.monotonic() + 30
    while (status := client.responses.cancel(answer.id).status) not in {"cancelled", "completed", "incomplete"}:
        assert time.monotonic() < deadline, status


@calls.add("images")
def image(client: OpenAI) -> None:
    answer = client.images.generate(model="image", prompt="a blue moon", size="256x256")
    assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")


@calls.add("image edits")
def edit(client: OpenAI) -> None:
    answer = client.images.edit(model="image", prompt="a red moon", image=("moon.png", PICTURE, "image/png"))
    assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")


def run(url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        calls.run(client)
