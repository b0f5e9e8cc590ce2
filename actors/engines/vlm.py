"""What a vision-language engine is asked and what it answers, whichever engine it is. Plain data; it crosses the executor's pipes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Quantization = Literal["auto", "none", "8bit", "4bit"]


@dataclass(frozen=True)
class Question:
    """One question. `text` is what the user says, without any model's frame around it; `image` is a whole PNG or JPEG.

    `schema`: JSON schema that the answer must satisfy. `max_new_tokens` is never exceeded: an answer with a schema is brought to
    its end in time. `longest_bytes` is the longest answer that the schema admits.
    """

    text: str
    image: bytes | None = None
    max_new_tokens: int = 1024
    repetition_penalty: float = 1.0
    schema: str | None = None
    longest_bytes: int = 0


@dataclass(frozen=True)
class Answer:
    """`constrained`: the schema was enforced while decoding. `rows`: how many questions were taken in together with this one."""

    text: str
    finish: Literal["stop", "length"]
    model: str
    prompt_tokens: int = 0
    tokens: int = 0
    constrained: bool = False
    rows: int = 1


@dataclass(frozen=True)
class VlmOptions:
    """How the transformers engine is opened. `model`: a folder or a hub id; `frame`: the model's own way to mark user and answer."""

    model: str
    cache: Path | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Quantization = "auto"
    max_rows: int = 8
    window_seconds: float = 0.005
    load_seconds: float = 900.0
    threads: int | None = None
    frame: str = "USER: {image}{text}\nASSISTANT:"
