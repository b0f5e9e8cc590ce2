"""OpenAI's chat request, and the command built from it. Features that are not supported are rejected, not ignored."""

from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue

from gateway.openai.chat_messages import ChatMessage, LenientModel, to_message_fields
from gateway.openai.errors import NO_RETRY
from gateway.problems import HttpProblem
from gateway.text.client import lacks_vision

CHAT_REQUEST_EXAMPLE: dict[str, JsonValue] = {"model": "text", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}
SMALLEST_TOP_P = 1e-6
"""OpenAI takes 0, which means the likeliest token alone."""
TokenLimit = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda value: None if value == -1 else value)]

OtherGrammar = Annotated[None, BeforeValidator(lambda value: value or None), Field(description="Not supported: see `response_format`.")]


class NamedSchema(LenientModel):
    name: str = "answer"
    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(LenientModel):
    """`schema`: that of `json_object`, as llama.cpp and others take it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    plain_schema: dict[str, Any] | None = Field(None, alias="schema")


class StreamOptions(LenientModel):
    include_usage: bool = False


class ChatRequest(LenientModel):
    """A chat request. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [CHAT_REQUEST_EXAMPLE]})

    model: str = Field(max_length=255, description="The served model, one of its LoRA adapters, or `text` for whatever is served.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_tokens: TokenLimit = Field(None, description="-1: as null.")
    max_completion_tokens: TokenLimit = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="An extension of vLLM.")
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    response_format: ResponseFormat | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    best_of: Literal[1] | None = None
    logprobs: Literal[False] | None = False
    top_logprobs: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    guided_json: OtherGrammar = None
    guided_regex: OtherGrammar = None
    guided_choice: OtherGrammar = None
    guided_grammar: OtherGrammar = None
    structured_outputs: OtherGrammar = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    async def command(self, request: Request, lora: str | None) -> dict[str, Any]:
        """The text step's command, with OpenAI's defaults. Images are stored. Raises HttpProblem(400, 413, 501, 503)."""
        await self.check_vision(request)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        fields = {
            "messages": [await to_message_fields(request, index, message) for index, message in enumerate(self.messages)],
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else max(self.top_p, SMALLEST_TOP_P),
            "repetition_penalty": self.repetition_penalty or 1.0,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "stop": [text for text in stop if text],
            "seed": self.seed,
            "lora_adapter": lora,
        }
        return {name: value for name, value in fields.items() if value is not None} | response_format_fields(self.response_format)

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
        texts = [text for message in self.messages for text in message.texts]
        if (length := sum(map(len, texts))) > limit:
            raise HttpProblem(413, "message-too-large", f"the messages have {length} characters, {limit} are allowed", param="messages")


def response_format_fields(response_format: ResponseFormat | None) -> dict[str, Any]:
    """Raises HttpProblem(400)."""
    if response_format is None or response_format.type == "text":
        return {}
    if response_format.type == "json_object":
        return {"json_schema": response_format.plain_schema} if response_format.plain_schema else {"json_only": True}
    if response_format.json_schema is None:
        raise HttpProblem(400, "invalid-request", "json_schema is missing", param="response_format.json_schema")
    return {"json_schema": response_format.json_schema.json_schema}
