"""OpenAI's older request for completions: a text that the model continues, without a chat template."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import ConfigDict, Field, JsonValue

from gateway.openai.strict_body import texts_only, unsupported
from gateway.openai.text_requests import TextRequest, TokenLimit
from gateway.problems import HttpProblem

COMPLETION_REQUEST_EXAMPLE: dict[str, JsonValue] = {"model": "text", "prompt": "Once upon a time", "max_tokens": 64}
DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
MAX_COMPLETIONS = 128
"""Answers to all prompts of a request."""
MAX_ALTERNATIVES = 12_000
"""Log probabilities in a response to several prompts; the worker limits those of each."""
TEXTS_ONLY = "a prompt is a text, or a list of texts; token ids are those of one model"
Prompt = Annotated[str, Field(max_length=400_000)]


class CompletionRequest(TextRequest):
    """A request for completions. Unknown fields are refused; null means what an absent field means."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [COMPLETION_REQUEST_EXAMPLE]})

    prompt: Annotated[Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_COMPLETIONS)], texts_only(TEXTS_ONLY)]
    max_tokens: TokenLimit = Field(DEFAULT_MAX_TOKENS, description="-1: the worker's default.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Of so many likeliest tokens at each place, and of the token itself.")
    echo: unsupported("put the prompt before the answer yourself", False) = None  # type: ignore[valid-type]
    suffix: unsupported("write what follows into the prompt", "") = None  # type: ignore[valid-type]

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def check(self) -> None:
        """Whether the fields fit together. Raises HttpProblem(400)."""
        if (count := self.n * len(self.prompts)) > MAX_COMPLETIONS:
            detail = f"n answers to each prompt are {count}, at most {MAX_COMPLETIONS} are allowed"
            raise HttpProblem(400, "invalid-request", detail, param="n")
        if self.logprobs is not None and len(self.prompts) > 1:
            self._check_logprobs(count, self.logprobs)
        if self.stream and len(self.prompts) > 1:
            raise HttpProblem(400, "invalid-request", "a stream is of one prompt: send a request for each", param="prompt")

    def _check_logprobs(self, answers: int, alternatives: int) -> None:
        """Of several prompts together; those of one are limited by the worker, which knows its own limit of tokens.

        Raises HttpProblem(400).
        """
        if self.max_tokens is None:
            detail = "logprobs of several prompts need max_tokens, which limits their number"
            raise HttpProblem(400, "invalid-request", detail, param="max_tokens")
        if (count := answers * self.max_tokens * (1 + alternatives)) > MAX_ALTERNATIVES:
            detail = (
                f"{answers} answers of {self.max_tokens} tokens with {alternatives} logprobs are {count} log probabilities, and a response "
                f"holds {MAX_ALTERNATIVES}: send fewer prompts, or lower n, max_tokens or logprobs"
            )
            raise HttpProblem(400, "invalid-request", detail, param="logprobs")

    def commands(self, lora: str | None) -> Iterator[dict[str, Any]]:
        """One of the text step for each prompt."""
        logprobs = {} if self.logprobs is None else {"with_logprobs": True, "top_logprobs": self.logprobs}
        fields = self.sampling_fields(lora) | {"max_tokens": self.max_tokens} | logprobs
        for prompt in self.prompts:
            yield {"raw_prompt": prompt} | {name: value for name, value in fields.items() if value is not None}
