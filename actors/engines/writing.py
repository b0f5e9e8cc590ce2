"""What a language model is asked and what it answers, whichever engine it is. Plain data."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from bus.errors import PermanentError


@dataclass(frozen=True)
class Draft:
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
    piecewise: bool = False


@dataclass(frozen=True)
class Written:
    """What was written since the last one, and `tokens` in all. `finish` stands in the last, with the count of the prompt's tokens."""

    text: str
    tokens: int
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0


@dataclass(frozen=True)
class WriterState:
    """How a writer is; None where it is not known."""

    running: int = 0
    waiting: int = 0
    tokens: int = 0
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


class Writer(Protocol):
    """`name`: how the engine is called in a status."""

    name: str

    def write(self, draft: Draft, deadline: datetime | None) -> AsyncIterator[Written]:
        """Whoever leaves early stops the model. Raises PromptTooLong, PermanentError, TemporaryError, EngineDead."""
        ...

    async def ready(self) -> str:
        """Wait until the model can write; its name."""
        ...

    async def count(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        """The tokens of a prompt, and the context length; None when nobody can tell."""
        ...

    async def state(self) -> WriterState: ...
