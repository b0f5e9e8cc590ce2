"""The calls of litellm against the gateway as an OpenAI-compatible server."""

import base64
from typing import Any

import litellm
from calls import CITY_SCHEMA, MESSAGES, TOOL, Calls, arguments_of

calls = Calls("litellm")


@calls.add("chat")
def completion(server: dict[str, Any]) -> None:
    answer = litellm.completion(model="openai/text", messages=MESSAGES, max_tokens=8, **server)
    assert answer.usage.completion_tokens > 0


@calls.add("chat, streamed")
def stream(server: dict[str, Any]) -> None:
    chunks = list(litellm.completion(model="openai/text", messages=MESSAGES, max_tokens=8, stream=True, **server))
    assert chunks[-1].choices[0].finish_reason


@calls.add("chat, `n`")
def several_answers(server: dict[str, Any]) -> None:
    assert len(litellm.completion(model="openai/text", messages=MESSAGES, max_tokens=8, n=2, **server).choices) == 2


@calls.add("chat, tools")
def tools(server: dict[str, Any]) -> None:
    answer = litellm.completion(model="openai/text", messages=MESSAGES, max_tokens=256, tools=[TOOL], tool_choice="required", **server)
    assert arguments_of(answer.choices[0].message.tool_calls[0].function.arguments)


@calls.add("chat, JSON schema")
def json_schema(server: dict[str, Any]) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY_SCHEMA, "strict": True}}
    answer = litellm.completion(model="openai/text", messages=MESSAGES, max_tokens=256, response_format=schema, **server)
    assert arguments_of(answer.choices[0].message.content)


@calls.add("chat, `logprobs`")
def logprobs(server: dict[str, Any]) -> None:
    answer = litellm.completion(model="openai/text", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2, **server)
    assert answer.choices[0].logprobs.content


@calls.add("completions")
def text_completion(server: dict[str, Any]) -> None:
    answer = litellm.text_completion(model="text-completion-openai/text", prompt="Once upon a time", max_tokens=8, **server)
    assert answer.choices[0].finish_reason


@calls.add("embeddings")
def embedding(server: dict[str, Any]) -> None:
    answer = litellm.embedding(model="openai/embedding", input=["one", "two"], **server)
    assert len(answer.data) == 2


@calls.add("moderations")
def moderation(server: dict[str, Any]) -> None:
    assert litellm.moderation(input="a forbiddenword here", **server).results[0].flagged


@calls.add("responses")
def responses(server: dict[str, Any]) -> None:
    assert litellm.responses(model="openai/text", input="Hello", max_output_tokens=16, **server).status in {"completed", "incomplete"}


@calls.add("responses, streamed")
def streamed_responses(server: dict[str, Any]) -> None:
    events = list(litellm.responses(model="openai/text", input="Hello", max_output_tokens=16, stream=True, **server))
    assert events[-1].type in {"response.completed", "response.incomplete"}


@calls.add("images")
def image(server: dict[str, Any]) -> None:
    answer = litellm.image_generation(model="openai/image", prompt="a blue moon", size="256x256", **server)
    assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")


def run(url: str) -> None:
    calls.run({"api_base": f"{url}/v1", "api_key": "any", "max_retries": 0})
