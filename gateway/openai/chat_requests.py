"""OpenAI's chat request, and the command built from it. Features that are not supported are rejected, not ignored."""

import json
from typing import Any, Literal

from fastapi import Request
from pydantic import ConfigDict, Field, JsonValue

from contracts.text import ReasoningEffort
from gateway.openai.chat_messages import ChatMessage, to_messages
from gateway.openai.chat_tools import ToolRequest
from gateway.openai.errors import NO_RETRY
from gateway.openai.strict_body import NoEffect, StrictBody, check_fields_of_type, unsupported
from gateway.openai.text_requests import ServiceTier, TextRequest, TokenLimit
from gateway.problems import HttpProblem
from gateway.text.client import lacks_vision

CHAT_REQUEST_EXAMPLE: dict[str, JsonValue] = {"model": "text", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}


class NamedSchema(StrictBody):
    """Answers always obey the schema, whatever `strict` is; the name and the description are not shown to the model."""

    name: str = "answer"
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: NoEffect = None
    description: NoEffect = None


FORMAT_FIELDS = {"json_schema": frozenset({"json_schema"}), "plain_schema": frozenset({"json_object"})}
"""Which types of a format have a field."""


class ResponseFormat(StrictBody):
    """`schema`: that of `json_object`, as llama.cpp and others take it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    plain_schema: dict[str, Any] | None = Field(None, alias="schema")

    def command_fields(self) -> dict[str, Any]:
        """Raises HttpProblem(400)."""
        check_fields_of_type(self, FORMAT_FIELDS, "response_format")
        if self.type == "text":
            return {}
        if self.type == "json_object":
            return {"json_schema": self.plain_schema} if self.plain_schema else {"json_only": True}
        if self.json_schema is None:
            raise HttpProblem(400, "invalid-request", "json_schema is missing", param="response_format.json_schema")
        return {"json_schema": self.json_schema.json_schema}


class ChatRequest(TextRequest, ToolRequest):
    """A chat request. Unknown fields are refused; null means what an absent field means."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [CHAT_REQUEST_EXAMPLE]})

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_tokens: TokenLimit = Field(None, description="-1: as null.")
    max_completion_tokens: TokenLimit = None
    response_format: ResponseFormat = ResponseFormat(type="text")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    reasoning_effort: ReasoningEffort | None = None
    modalities: list[Literal["text"]] = Field(default_factory=list)
    store: Literal[False] = Field(False, description="Answers are not stored here: use /v1/responses.")
    service_tier: ServiceTier = "auto"
    verbosity: Literal["medium"] = Field("medium", description="Other values are not supported: ask for it in a message.")
    safety_identifier: NoEffect = None
    prompt_cache_key: NoEffect = None
    prompt_cache_options: NoEffect = None
    prompt_cache_retention: NoEffect = None
    prediction: NoEffect = None
    audio: unsupported("answers are text") = None  # type: ignore[valid-type]
    web_search_options: unsupported("the model has no web search: offer it as a tool") = None  # type: ignore[valid-type]
    moderation: unsupported("use /v1/moderations") = None  # type: ignore[valid-type]

    async def command(self, request: Request, lora: str | None) -> dict[str, Any]:
        """The text step's command, with OpenAI's defaults. Images are stored. Raises HttpProblem(400, 413, 501, 503)."""
        choices = self.tool_fields() | self.response_format.command_fields() | self._logprob_fields()
        await self.check_vision(request)
        fields = self.sampling_fields(lora) | {
            "messages": await to_messages(request, self.messages),
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "reasoning_effort": self.reasoning_effort,
        }
        return {name: value for name, value in fields.items() if value is not None} | choices

    def _logprob_fields(self) -> dict[str, Any]:
        """Raises HttpProblem(400)."""
        if self.top_logprobs and not self.logprobs:
            raise HttpProblem(400, "invalid-request", "top_logprobs needs logprobs true", param="top_logprobs")
        return {"with_logprobs": True, "top_logprobs": self.top_logprobs} if self.logprobs else {}

    async def check_vision(self, request: Request) -> None:
        """Raises HttpProblem(501) when a message has an image, and the served model reads none."""
        images = [
            f"messages.{index}.content.{position}"
            for index, message in enumerate(self.messages)
            for position, part in enumerate(message.parts)
            if part.is_image
        ]
        if images and await lacks_vision(request):
            raise HttpProblem(501, "vision-unsupported", "the served model reads no images: send text only", NO_RETRY, param=images[0])

    def check_text_length(self, limit: int) -> None:
        """A longer body is allowed for pictures only. Raises HttpProblem(413)."""
        texts = {
            "messages": sum(len(text) for message in self.messages for text in message.texts),
            "tools": len(json.dumps(self.definitions)),
            "response_format": len(self.response_format.model_dump_json()),
            "stop": sum(map(len, self.stop_texts)),
        }
        if (length := sum(texts.values())) > limit:
            longest = max(texts, key=lambda name: texts[name])
            detail = f"messages, tools, response_format and stop have {length} characters, {limit} are allowed"
            raise HttpProblem(413, "message-too-large", detail, param=longest)
