"""Answers in the form of OpenAI's chat completions: whole, and as the chunks of a stream."""

import time
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field

from contracts.text import Alternative, Answer, TextDelta, TextDone, TokenLogprob, ToolCall, ToolCallDelta, Usage
from gateway.sse import json_data
from gateway.strict_model import HttpModel

DONE_EVENT = "data: [DONE]\n\n"


class ChatFunction(HttpModel):
    name: str
    arguments: str


class ChatToolCall(HttpModel):
    id: str
    type: Literal["function"] = "function"
    function: ChatFunction


class ChatAlternative(HttpModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class ChatTokenLogprob(ChatAlternative):
    top_logprobs: list[ChatAlternative]


class ChatLogprobs(HttpModel):
    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(HttpModel):
    """`content` is null beside calls without a text. `reasoning_content`: what the model thought before, where its server says it."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ChatToolCall] | None = None
    function_call: ChatFunction | None = Field(None, description="The call, when the request has `functions`.")
    reasoning_content: str | None = None


class Choice(HttpModel):
    index: int = 0
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter", "tool_calls", "function_call"]


class PromptDetails(HttpModel):
    cached_tokens: int = 0


class CompletionDetails(HttpModel):
    reasoning_tokens: int = 0


class ChatUsage(HttpModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCompletion(HttpModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    left_out: list[str] | None = Field(None, description="Parameters of the request that the model's server does not take; absent: none.")


def completion_id(prefix: str = "chatcmpl") -> str:
    return f"{prefix}-{uuid4().hex}"


def answers_of(done: TextDone) -> list[Answer]:
    """All answers, in order."""
    return done.answers or [Answer.model_construct(**{name: getattr(done, name) for name in Answer.model_fields})]


def completion_body(done: TextDone, model: str, in_old_form: bool) -> dict[str, Any]:
    """`in_old_form`: calls are `function_call`. Fields of a message that it does not have are absent."""
    answers = answers_of(done)
    choices = [
        Choice(
            index=index,
            message=assistant_message(answer, in_old_form),
            finish_reason=finish_reason(answer.finish_reason, in_old_form),
        )
        for index, answer in enumerate(answers)
    ]
    completion = ChatCompletion(
        id=completion_id(), created=int(time.time()), model=model, choices=choices, usage=chat_usage(done.usage),
        left_out=done.model_info.left_out,
    )  # fmt: skip
    body = completion.model_dump(mode="json", exclude={"left_out"} if completion.left_out is None else None)
    for choice, answer in zip(body["choices"], answers, strict=True):
        choice["logprobs"] = chat_logprobs(answer.logprobs)
        choice["message"] = without_absent(choice["message"], "tool_calls", "function_call", "reasoning_content")
    return body


def without_absent(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None or name not in names}


def assistant_message(answer: Answer, in_old_form: bool) -> AssistantMessage:
    calls = [ChatToolCall(id=call.id, function=chat_function(call)) for call in answer.tool_calls]
    return AssistantMessage(
        content=None if calls and not answer.response else answer.response,
        tool_calls=None if in_old_form else calls or None,
        function_call=calls[0].function if calls and in_old_form else None,
        reasoning_content=answer.reasoning,
    )


def chat_function(call: ToolCall) -> ChatFunction:
    return ChatFunction(name=call.name, arguments=call.arguments)


def finish_reason(reason: str, in_old_form: bool) -> Any:
    return "function_call" if reason == "tool_calls" and in_old_form else reason


def chat_usage(usage: Usage) -> ChatUsage:
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=usage.cached_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens=usage.reasoning_tokens),
    )


def chat_logprobs(tokens: list[TokenLogprob] | None) -> dict[str, Any] | None:
    """Those of `ChatLogprobs`; None without any. There may be thousands: they are no models."""
    if not tokens:
        return None
    content = [alternative(token) | {"top_logprobs": [alternative(top) for top in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def alternative(token: Alternative) -> dict[str, Any]:
    """Where the engine gives no bytes, the text is whole characters."""
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode()) if token.bytes is None else token.bytes}


class ChatChunks:
    """The events of one stream. Each choice begins with its role, and ends with its reason."""

    def __init__(self, model: str, *, in_old_form: bool, include_usage: bool) -> None:
        self._frame = {"id": completion_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._in_old_form, self._include_usage = in_old_form, include_usage
        self._begun: set[int] = set()

    def begin(self, choice: int) -> str:
        """The role of a choice, before its first delta."""
        if choice in self._begun:
            return ""
        self._begun.add(choice)
        return self._event(choice, {"role": "assistant", "content": ""})

    def delta(self, delta: TextDelta) -> str:
        fields = {
            "reasoning_content": delta.reasoning,
            "content": delta.delta,
            "tool_calls": [] if self._in_old_form else [tool_call_delta(call) for call in delta.tool_calls],
            "function_call": self._function_call(delta.tool_calls),
        }
        fields = {name: value for name, value in fields.items() if value}
        logprobs = chat_logprobs(delta.logprobs)
        return self.begin(delta.choice) + (self._event(delta.choice, fields, logprobs) if fields or logprobs else "")

    def _function_call(self, calls: list[ToolCallDelta]) -> dict[str, Any]:
        first = [call for call in calls if call.index == 0] if self._in_old_form else []
        return tool_call_delta(first[0])["function"] if first else {}

    def end(self, done: TextDone) -> str:
        frame = {"left_out": done.model_info.left_out} if done.model_info.left_out else {}
        events = [
            self.begin(index) + self._event(index, {}, None, finish_reason(answer.finish_reason, self._in_old_form), frame)
            for index, answer in enumerate(answers_of(done))
        ]
        usage = self._frame | {"choices": [], "usage": chat_usage(done.usage).model_dump(mode="json")}
        return "".join(events) + (json_data(usage) if self._include_usage else "") + DONE_EVENT

    def _event(
        self,
        choice: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
        frame: dict[str, Any] | None = None,
    ) -> str:
        fields = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return json_data(self._frame | (frame or {}) | {"choices": [fields]})


def tool_call_delta(call: ToolCallDelta) -> dict[str, Any]:
    """Only the first part of a call has its id, its type and its name."""
    first = {"id": call.id, "type": "function"} if call.id else {}
    return {"index": call.index} | first | {"function": ({"name": call.name} if call.name else {}) | {"arguments": call.arguments}}
