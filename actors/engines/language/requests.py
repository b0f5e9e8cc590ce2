"""Requests and responses of the vision-language and text engines, and the TextEngine protocol. Plain data; the VLM's cross the pipes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from bus.errors import PermanentError
from contracts.text import ReasoningEffort, TokenLogprob, ToolCallDelta

ResolvedQuantization = Literal["none", "8bit", "4bit"]
Quantization = ResolvedQuantization | Literal["auto"]
VisionFinishReason = Literal["stop", "length", "content_filter"]
"""`content_filter`: a server stopped the answer, or refused it."""
FinishReason = VisionFinishReason | Literal["tool_calls"]
"""`tool_calls`: the answer ends with calls."""


@dataclass(frozen=True)
class VlmRequest:
    """One request. `text`: the user's message, without a prompt template; `images`: the bytes of PNGs, in their order.

    `schema`: JSON schema that the answer must satisfy. `max_new_tokens` is never exceeded: an answer with a schema is completed within
    it. `max_answer_bytes`: the longest answer that the schema allows.
    """

    text: str
    images: tuple[bytes, ...] = ()
    max_new_tokens: int = 1024
    repetition_penalty: float = 1.0
    schema: str | None = None
    max_answer_bytes: int = 0


@dataclass(frozen=True)
class VlmResponse:
    """`constrained`: the schema was enforced while decoding. `batch_size`: requests that were prefilled together with this one."""

    text: str
    finish_reason: VisionFinishReason
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    constrained: bool = False
    batch_size: int = 1
    device_seconds: float | None = None


@dataclass(frozen=True)
class VlmOptions:
    """Options of the transformers engine. `model`: a folder or a hub id; `window_seconds`: how long the first request waits for others.

    `prompt_template`: of LLaVA-1.5; other families use their processor's chat template. `max_pixels`: of a picture that the processor
    reads, for families whose tokens grow with the pixels; None: the processor's own limit.
    `max_memory_bytes`: of the device, for weights that are not quantized; None: what is free.
    """

    model: str
    cache_dir: Path | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Quantization = "auto"
    max_rows: int = 8
    window_seconds: float = 0.005
    load_seconds: float = 900.0
    threads: int | None = None
    prompt_template: str = "USER: {image}{text}\nASSISTANT:"
    max_pixels: int | None = None
    max_memory_bytes: int | None = None


@dataclass(frozen=True)
class TextModelOptions:
    """Options of the embedded text engine. `model`: a folder, which may hold one `.gguf` file, or a hub id.

    `max_model_len`: the most tokens of prompt and answer; None: the model's own limit. `part_tokens`: of a prompt that are read at once,
    between two tokens of the other answers; None: as the device suits. `stall_seconds`: so long a silence is reported.
    `loras`: name → folder of an adapter. `prefix_cache_bytes`: of prompts and answers whose key-value cache is kept; 0: none.
    """

    model: str
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    max_model_len: int | None = None
    max_rows: int = 8
    window_seconds: float = 0.002
    load_seconds: float = 900.0
    threads: int | None = None
    part_tokens: int | None = None
    stall_seconds: float = 120.0
    loras: dict[str, str] = field(default_factory=dict)
    prefix_cache_bytes: int = 256 << 20


@dataclass(frozen=True)
class TextResponse:
    """The whole answer of the embedded text engine, with its reasoning and its calls in the text. `cached_tokens`: of the prompt, taken
    from the prefix cache. `reasoning_tokens`: of the completion.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    device_seconds: float | None = None
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class GenerationRequest:
    """One text generation. `messages` in OpenAI's form, also those of the role `tool`. `schema`: JSON schema that constrains the decoding.

    `prompt`: a text that is continued without a chat template; `messages` is empty then.
    `tools`: JSON objects in OpenAI's form, `{"type": "function", "function": {"name": …, "parameters": …}}`. `tool_choice`: `none`,
    `auto`, `required`; `tool_name`: the tool that must be called. `logprobs`: how many of the likeliest tokens are reported beside each
    token; None: no log probabilities.
    `tenant`: engines that schedule requests themselves are fair to the tenants, and share no prefix between them.
    """

    messages: list[dict[str, Any]]
    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    lora: str | None = None
    schema: dict[str, Any] | None = None
    stream: bool = False
    tenant: str = ""
    prompt: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Literal["none", "auto", "required"] = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    logprobs: int | None = None
    reasoning_effort: ReasoningEffort | None = None


@dataclass(frozen=True)
class GenerationChunk:
    """The text since the last chunk. `completion_tokens`: in all so far. `reasoning`, `tool_calls` and `logprobs`: since the last chunk.

    Only the last chunk has a finish reason and the fields behind it. `left_out`: parameters of the request that the server does not take.
    `device_seconds`: busy time of the device for this request; None: not known.
    """

    text: str
    completion_tokens: int
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    left_out: tuple[str, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    device_seconds: float | None = None


@dataclass(frozen=True)
class EngineState:
    """The state of a text engine; None where it is not known. Memory in GB, utilizations in percent.

    `silent_seconds`: for how long running requests have got no token, where the engine measures it.
    """

    running: int = 0
    waiting: int = 0
    generated_tokens: int = 0
    last_token_at: float | None = None
    silent_seconds: float | None = None
    max_model_len: int | None = None
    vision: bool | None = None
    loras: tuple[str, ...] = ()
    device: str | None = None
    gpu_count: int | None = None
    gpu_memory_used: float | None = None
    gpu_memory_total: float | None = None
    gpu_utilization: float | None = None
    cache_utilization: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class PromptTooLong(PermanentError):
    """The prompt, alone or with `max_tokens`, exceeds the model's context. 0: not known."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__("prompt-too-long", f"The prompt has {tokens} tokens; the model's context holds {limit}. Send less.")
        self.tokens, self.limit = tokens, limit

    def __reduce__(self) -> tuple[type[PermanentError], tuple[object, ...]]:
        return PromptTooLong, (self.tokens, self.limit)


class TextEngine(Protocol):
    """A text engine, local or remote. `name`: its name in the status."""

    name: str

    def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncIterator[GenerationChunk]:
        """Generate chunks; closing the iterator stops the model. Raises PromptTooLong, PermanentError, TemporaryError, EngineCrashed."""
        ...

    async def ready(self) -> str:
        """Wait until the model is loaded; its name."""
        ...

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        """The number of tokens of a prompt, and the context length; None when the engine cannot count them."""
        ...

    async def vision(self) -> bool | None:
        """Whether the model reads images; None: it is not known."""
        ...

    async def state(self) -> EngineState: ...
