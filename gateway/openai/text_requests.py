"""What OpenAI's requests for text have in common: sampling, limits, streams, and fields that are accepted without effect or refused."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.openai.strict_body import NoEffect, StrictBody, unsupported

SMALLEST_TOP_P = 1e-6
"""OpenAI takes 0, which means the likeliest token alone."""
MAX_ANSWERS = 16
TokenLimit = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda value: None if value == -1 else value)]
USE_RESPONSE_FORMAT = "use response_format with a JSON schema"


class StreamOptions(StrictBody):
    """Of responses too. Events are not padded: `include_obfuscation` may only be false."""

    include_obfuscation: Literal[False] = False


class UsageOptions(StreamOptions):
    """Those of chat and completions."""

    include_usage: bool = False


class TextRequest(StrictBody):
    """The fields of both requests. `repetition_penalty` is an extension of vLLM."""

    model: str = Field(max_length=255, description="The served model, one of its LoRA adapters, or `text` for whatever is served.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="An extension of vLLM.")
    stop: str | Annotated[list[str], Field(max_length=4)] = Field(default_factory=list)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    stream: bool = False
    stream_options: UsageOptions = Field(default_factory=UsageOptions)
    user: NoEffect = None
    metadata: NoEffect = None
    best_of: int | None = Field(None, ge=1, description="Not supported: more than n. Ask for n answers, and choose.")
    logit_bias: unsupported("engines have other tokens than OpenAI's models", {}) = None  # type: ignore[valid-type]
    top_k: unsupported("use top_p", -1, 0) = None  # type: ignore[valid-type]
    min_p: unsupported("use top_p", 0) = None  # type: ignore[valid-type]
    guided_json: unsupported(USE_RESPONSE_FORMAT, {}, "") = None  # type: ignore[valid-type]
    guided_regex: unsupported(USE_RESPONSE_FORMAT, "") = None  # type: ignore[valid-type]
    guided_choice: unsupported(USE_RESPONSE_FORMAT, []) = None  # type: ignore[valid-type]
    guided_grammar: unsupported(USE_RESPONSE_FORMAT, "") = None  # type: ignore[valid-type]
    structured_outputs: unsupported(USE_RESPONSE_FORMAT, {}) = None  # type: ignore[valid-type]

    @field_validator("best_of")
    @classmethod
    def refuse_more_than_n(cls, best_of: int, info: ValidationInfo) -> int:
        """Raises ValueError."""
        if best_of > info.data.get("n", MAX_ANSWERS):
            raise ValueError("not supported above n: ask for n answers, and choose")
        return best_of

    @property
    def stop_texts(self) -> list[str]:
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop) if text]

    def sampling_fields(self, lora: str | None) -> dict[str, Any]:
        """The fields of the command, with OpenAI's defaults."""
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else max(self.top_p, SMALLEST_TOP_P),
            "repetition_penalty": self.repetition_penalty or 1.0,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "stop": self.stop_texts,
            "seed": self.seed,
            "n": None if self.n == 1 else self.n,
            "lora_adapter": lora,
        }


ServiceTier = Literal["auto", "default"]
"""Other tiers are promises about speed that nothing here keeps."""
