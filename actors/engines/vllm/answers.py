"""The outputs of vLLM for one request, as the chunks of an engine: text, reasoning, tool calls and log probabilities."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from actors.engines.language.chat_format import RenderedPrompt
from actors.engines.language.content_logprobs import ContentLogprobs
from actors.engines.language.logprobs import Measured, describe_tokens
from actors.engines.language.requests import FinishReason, GenerationChunk, GenerationRequest
from actors.engines.language.tool_calls import AnswerParts, AnswerReader
from contracts.text import TokenLogprob


class VllmAnswer:
    """Reads the outputs of one request, each of which has the tokens since the one before.

    `vocabulary`: the bytes of each token, for log probabilities. `thinks`: the model may begin with its reasoning.
    """

    def __init__(self, request: GenerationRequest, prompt: RenderedPrompt, vocabulary: Sequence[bytes], *, thinks: bool) -> None:
        seed = random.getrandbits(63) if request.seed is None else request.seed
        thinks = thinks and request.prompt is None
        self._reader = AnswerReader(request, thinks=thinks, in_reasoning=prompt.in_reasoning, seed=seed)
        self._request, self._prompt_tokens, self._vocabulary = request, len(prompt.ids), vocabulary
        self.tokens = self._cached_tokens = self._reasoning_tokens = 0
        self._reason: FinishReason = "stop"
        self._shown_logprobs = ContentLogprobs()

    def push(self, output: Any) -> GenerationChunk:
        (completion,) = output.outputs
        self.tokens += len(completion.token_ids)
        self._cached_tokens = output.num_cached_tokens or self._cached_tokens
        self._reason = "length" if completion.finish_reason == "length" else "stop"
        parts = self._reader.push(completion.text)
        self._reasoning_tokens += len(completion.token_ids) if parts.reasoning else 0
        shown = self._shown_logprobs.push(self._logprobs(completion), parts.content, is_other=parts.has_other)
        return self._chunk(parts, shown)

    def last_chunk(self) -> GenerationChunk:
        parts = self._reader.push("", ends=True)
        shown = self._shown_logprobs.push((), parts.content, is_other=parts.has_other, ends=True)
        return self._chunk(parts, shown, self._reader.finish_reason(self._reason))

    def _chunk(self, parts: AnswerParts, logprobs: tuple[TokenLogprob, ...], reason: FinishReason | None = None) -> GenerationChunk:
        return GenerationChunk(
            parts.content,
            self.tokens,
            reason,
            self._prompt_tokens,
            reasoning=parts.reasoning,
            tool_calls=parts.tool_calls,
            logprobs=logprobs,
            cached_tokens=self._cached_tokens,
            reasoning_tokens=self._reasoning_tokens,
        )

    def _logprobs(self, completion: Any) -> tuple[TokenLogprob, ...]:
        if self._request.logprobs is None or not completion.logprobs:
            return ()
        places = zip(completion.token_ids, completion.logprobs, strict=False)
        measured = [measure(token, place, self._request.logprobs) for token, place in places]
        return describe_tokens(measured, self._vocabulary.__getitem__)


def measure(token: int, place: Mapping[int, Any], count: int) -> Measured:
    """Of one place, at which vLLM also reports the chosen token where it is none of the likeliest."""
    likeliest = sorted(((other, found.logprob) for other, found in place.items()), key=lambda entry: -entry[1])[:count]
    return Measured(token, place[token].logprob, tuple(likeliest))
