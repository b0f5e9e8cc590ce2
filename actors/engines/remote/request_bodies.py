"""The bodies of requests to an OpenAI-compatible server, and what is not sent to one."""

import json
from collections.abc import Iterator
from typing import Any

from actors.engines.language.grammar import rewrite_schema
from actors.engines.language.requests import GenerationRequest, PromptTooLong
from actors.engines.language.tool_calls import stop_sequences
from actors.engines.remote.openai_client import response_format
from bus.errors import PermanentError

MAX_BYTES_PER_TOKEN = 16
"""No tokenizer makes fewer tokens of a usual text; a longer prompt is refused unsent."""
TEXT_MEMBERS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Of a message, beside its content."""


def build_request_body(request: GenerationRequest, model: str, *, by_vllm: bool = False) -> dict[str, Any]:
    """The request body. Optional parameters are sent only when they are set.

    vLLM gets the schema in the form in which its grammar lets no control character into a string; other servers may not know patterns.
    It also gets the tenant, so that tenants share no prefix in its cache.
    """
    body: dict[str, Any] = {
        "model": model,
        **({"messages": request.messages} if request.prompt is None else {"prompt": request.prompt}),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
    if request.schema is not None:
        any_object = request.schema == {"type": "object"}  # more servers know this form than a schema
        schema = rewrite_schema(request.schema) if by_vllm else request.schema
        body |= {"response_format": {"type": "json_object"} if any_object else response_format(json.dumps(schema))}
    optional = {
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "stop": list(stop_sequences(request)),
        "seed": request.seed,
        "repetition_penalty": request.repetition_penalty if request.repetition_penalty != 1 else None,
    }
    given = {name: value for name, value in optional.items() if value or (value == 0 and name == "seed")}
    salt = {"cache_salt": request.tenant} if by_vllm and request.tenant else {}
    return body | given | tool_fields(request, by_vllm=by_vllm) | logprob_fields(request) | reasoning_fields(request) | salt


def tool_fields(request: GenerationRequest, *, by_vllm: bool) -> dict[str, Any]:
    """The defaults, `auto` and several calls, are not sent."""
    if not request.tools:
        return {}
    fields: dict[str, Any] = {"tools": [constrained_tool(tool) for tool in request.tools] if by_vllm else list(request.tools)}
    if request.tool_name is not None:
        fields["tool_choice"] = {"type": "function", "function": {"name": request.tool_name}}
    elif request.tool_choice != "auto":
        fields["tool_choice"] = request.tool_choice
    return fields if request.parallel_tool_calls else fields | {"parallel_tool_calls": False}


def constrained_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool as vLLM obeys the schema of its arguments, which it does for strict tools alone."""
    function = tool["function"]
    if function.get("strict") is False:
        return tool
    parameters = {"parameters": rewrite_schema(function["parameters"])} if "parameters" in function else {}
    return tool | {"function": function | parameters | {"strict": True}}


def logprob_fields(request: GenerationRequest) -> dict[str, Any]:
    """Of chats, or of raw prompts, where the number of the likeliest tokens is the switch itself."""
    if request.logprobs is None:
        return {}
    if request.prompt is not None:
        return {"logprobs": request.logprobs}
    return {"logprobs": True} | ({"top_logprobs": request.logprobs} if request.logprobs else {})


def reasoning_fields(request: GenerationRequest) -> dict[str, Any]:
    return {"reasoning_effort": request.reasoning_effort} if request.reasoning_effort is not None else {}


def check_prompt(request: GenerationRequest, max_model_len: int | None) -> None:
    """Raises PromptTooLong for a prompt that cannot fit: some servers work on it until their memory is exhausted, and serve nobody else.

    Raises PermanentError("prompt-unreadable") for a text that is not valid Unicode.
    """
    try:
        size = sum(len(text.encode()) for text in prompt_texts(request))
    except UnicodeEncodeError as error:
        raise PermanentError("prompt-unreadable", f"a message is not valid Unicode: {error.reason}") from error
    if max_model_len is not None and size > MAX_BYTES_PER_TOKEN * max_model_len:
        raise PromptTooLong(size // MAX_BYTES_PER_TOKEN, max_model_len)


def prompt_texts(request: GenerationRequest) -> Iterator[str]:
    """The texts of a prompt: raw, or those of its messages and tools. Pictures have none."""
    yield request.prompt or ""
    for message in request.messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part.get("text") or "" for part in content)
        yield from (json.dumps(message[name], ensure_ascii=False) for name in TEXT_MEMBERS if name in message)
    yield from (json.dumps(tool, ensure_ascii=False) for tool in request.tools)
