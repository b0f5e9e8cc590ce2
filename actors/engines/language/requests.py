"""What a vision-language engine is asked and what it answers, whichever engine it is. Plain data; it crosses the executor's pipes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from bus.errors import PermanentError

Quantization = Literal["auto", "none", "8bit", "4bit"]


@dataclass(frozen=True)
class VlmRequest:
    """One question. `text` is what the user says, without any model's frame around it; `image` is a whole PNG or JPEG.

    `schema`: JSON schema that the answer must satisfy. `max_new_tokens` is never exceeded: an answer with a schema is brought to
    its end in time. `longest_bytes` is the longest answer that the schema admits.
    """

    text: str
    image: bytes | None = None
    max_new_tokens: int = 1024
    repetition_penalty: float = 1.0
    schema: str | None = None
    max_answer_bytes: int = 0


@dataclass(frozen=True)
class VlmResponse:
    """`constrained`: the schema was enforced while decoding. `rows`: how many questions were taken in together with this one."""

    text: str
    finish_reason: Literal["stop", "length"]
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    constrained: bool = False
    batch_size: int = 1


@dataclass(frozen=True)
class VlmOptions:
    """How the transformers engine is opened. `model`: a folder or a hub id; `frame`: the model's own way to mark user and answer."""

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


@dataclass(frozen=True)
class GenerationRequest:
    """One thing to write. `messages` in OpenAI's form. `schema`: the answer satisfies it; the decoder can say nothing else."""

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


@dataclass(frozen=True)
class GenerationChunk:
    """What was written since the last one, and `tokens` in all. `finish` stands in the last, with the count of the prompt's tokens."""

    text: str
    completion_tokens: int
    finish_reason: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0


@dataclass(frozen=True)
class EngineState:
    """How a writer is; None where it is not known."""

    running: int = 0
    waiting: int = 0
    generated_tokens: int = 0
    last_token_at: float | None = None
    max_model_len: int | None = None
    loras: tuple[str, ...] = ()
    device: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class PromptTooLong(PermanentError):
    """The prompt alone, or with the tokens asked for, has more tokens than the model's context. 0: not known."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__("prompt-too-long", f"The prompt has {tokens} tokens; the model's context holds {limit}. Send less.")
        self.tokens, self.limit = tokens, limit


class TextEngine(Protocol):
    """`name`: how the engine is called in a status."""

    name: str

    def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncIterator[GenerationChunk]:
        """Whoever leaves early stops the model. Raises PromptTooLong, PermanentError, TemporaryError, EngineDead."""
        ...

    async def ready(self) -> str:
        """Wait until the model can write; its name."""
        ...

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        """The tokens of a prompt, and the context length; None when nobody can tell."""
        ...

    async def state(self) -> EngineState: ...
