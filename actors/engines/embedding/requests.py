"""What an embedding engine is asked and answers, and the options of the one that loads a model."""

from dataclasses import dataclass
from typing import Literal

ENGINE_FACTORY = "actors.engines.embedding.engine:open_embedding_model"
Pooling = Literal["mean", "cls", "last"]
"""`mean`: of all tokens. `cls`: the first token. `last`: the last token, as decoders have it."""


@dataclass(frozen=True)
class EmbeddingOptions:
    """As in the settings. `load_seconds`: how long loading may take without a sign of life."""

    model: str
    pooling: Pooling | None = None
    dimensions: tuple[int, ...] = ()
    device: str = "auto"
    threads: int | None = None
    max_tokens: int | None = None
    batch_tokens: int = 16_384
    load_seconds: float = 900.0


@dataclass(frozen=True)
class EmbeddingRequest:
    """`dimensions`: None for all that the model has."""

    inputs: tuple[str, ...]
    dimensions: int | None = None


@dataclass(frozen=True)
class EmbeddingResponse:
    """`vectors`: of each input, little-endian float32."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int
