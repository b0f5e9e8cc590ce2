"""An answer of a model server, whole or from the events of a stream, as the chunks of an engine."""

from dataclasses import dataclass, replace
from typing import Any

from actors.engines.language.content_logprobs import ContentLogprobs
from actors.engines.language.requests import FinishReason, GenerationChunk, GenerationRequest, VisionFinishReason
from actors.engines.remote.answers import (
    SurrogateJoiner,
    TokenCounts,
    choice_text,
    ends_answer,
    finish_reason,
    first_choice,
    first_choices,
    message_text,
    reasoning_text,
    repair_surrogates,
    token_counts,
)
from actors.engines.remote.event_stream import EventReader
from actors.engines.remote.logprobs import read_logprobs
from actors.engines.remote.openai_client import parsing_answer
from actors.engines.remote.tool_calls import MAX_CALLS, ToolCallReader
from bus.errors import PermanentError, TemporaryError
from contracts.text import TokenLogprob


@dataclass(frozen=True)
class AnswerForm:
    """What a request makes of its answer. `raw`: a completion without messages, which is streamed as texts. `max_calls`: 0: the tool
    calls of a model that got no tools are left out. `logprobs`: how many of the likeliest tokens are reported beside each; None: none is.
    """

    raw: bool
    logprobs: int | None
    max_calls: int

    @classmethod
    def of_request(cls, request: GenerationRequest) -> "AnswerForm":
        offers_tools = bool(request.tools) and (request.tool_choice != "none" or request.tool_name is not None)
        max_calls = (MAX_CALLS if request.parallel_tool_calls else 1) if offers_tools else 0
        return cls(request.prompt is not None, request.logprobs, max_calls)

    def read_logprobs(self, choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
        return () if self.logprobs is None else read_logprobs(choice, self.logprobs)


def read_completion(completion: dict[str, Any], form: AnswerForm, left_out: tuple[str, ...]) -> GenerationChunk:
    """A whole answer as one chunk. Raises TemporaryError for one that is none of OpenAI's API, and as `check_logprobs`."""
    calls = ToolCallReader(form.max_calls)
    with parsing_answer():
        choice = first_choice(completion)
        message = choice.get("message") or choice.get("delta")
        text, reasoning = repair_surrogates(choice_text(choice)), repair_surrogates(reasoning_text(message))
        parts, logprobs = (*calls.push(message), *calls.end()), form.read_logprobs(choice)
        reason = with_calls(finish_reason(choice), calls)
        shown = ContentLogprobs().push(logprobs, text, is_other=bool(reasoning or parts), ends=True)
        chunk = GenerationChunk(text, 0, reason, left_out=left_out, reasoning=reasoning, tool_calls=parts, logprobs=shown)
        chunk = with_counts(chunk, token_counts(completion))
    check_logprobs(form, bool(text), bool(logprobs))
    return chunk


def with_calls(reason: VisionFinishReason, calls: ToolCallReader) -> FinishReason:
    """Servers give several reasons for an answer that ends with calls; for one without calls `tool_calls` is none."""
    return "tool_calls" if calls and reason == "stop" else reason


def with_counts(chunk: GenerationChunk, counts: TokenCounts, counted: int = 0) -> GenerationChunk:
    return replace(
        chunk,
        completion_tokens=counts.completion or counted,
        prompt_tokens=counts.prompt,
        cached_tokens=counts.cached,
        reasoning_tokens=counts.reasoning,
    )


def check_logprobs(form: AnswerForm, has_text: bool, has_logprobs: bool) -> None:
    """Raises PermanentError("parameter-unsupported") where a server ignored that they were requested."""
    if form.logprobs is not None and has_text and not has_logprobs:
        raise PermanentError("parameter-unsupported", "logprobs: the model's server returned none, it ignores the parameter")


class StreamedAnswer:
    """An answer that is put together from the events of a stream, or from the whole completion of a server that does not stream.

    `chunks`: with content of any kind, so far.
    """

    def __init__(self, form: AnswerForm) -> None:
        self.reader, self.chunks, self._refused = EventReader(), 0, False
        self._form, self._calls = form, ToolCallReader(form.max_calls)
        self._text, self._reasoning = SurrogateJoiner(), SurrogateJoiner()
        self._last_choice, self._counts = dict[str, Any](), TokenCounts()
        self._has_text = self._has_logprobs = False
        self._shown_logprobs = ContentLogprobs()

    def push(self, event: dict[str, Any]) -> GenerationChunk | None:
        """What one event adds; None for nothing. Raises TemporaryError for an event that is none of OpenAI's API."""
        chunk = GenerationChunk("", 0)
        with parsing_answer():
            counts = token_counts(event)
            self._counts = counts if counts.completion or counts.prompt else self._counts
            for choice in first_choices(event):
                self._last_choice = choice if ends_answer(choice) or "message" in choice else self._last_choice
                chunk = self._add(chunk, choice)
        chunk = replace(chunk, text=self._text.push(chunk.text), reasoning=self._reasoning.push(chunk.reasoning))
        self._has_text, self._has_logprobs = self._has_text or bool(chunk.text), self._has_logprobs or bool(chunk.logprobs)
        shown = self._shown_logprobs.push(chunk.logprobs, chunk.text, is_other=bool(chunk.reasoning or chunk.tool_calls))
        chunk = replace(chunk, logprobs=shown)
        if not (chunk.text or chunk.reasoning or chunk.tool_calls or chunk.logprobs):
            return None
        self.chunks += 1
        return replace(chunk, completion_tokens=self.chunks)

    def _add(self, chunk: GenerationChunk, choice: dict[str, Any]) -> GenerationChunk:
        """The chunk with what a choice adds. A choice without a delta is a whole answer, unless the stream is one of texts."""
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._refused = self._refused or bool(delta.get("refusal"))
        elif self.chunks and not self._form.raw:
            return chunk
        message = delta if isinstance(delta, dict) else choice.get("message")
        return replace(
            chunk,
            text=chunk.text + (message_text(delta) if isinstance(delta, dict) else choice_text(choice)),
            reasoning=chunk.reasoning + reasoning_text(message),
            tool_calls=(*chunk.tool_calls, *self._calls.push(message)),
            logprobs=(*chunk.logprobs, *self._form.read_logprobs(choice)),
        )

    def last_chunk(self, left_out: tuple[str, ...]) -> GenerationChunk:
        """Raises TemporaryError for a stream that ended before its answer was complete, and as `check_logprobs`."""
        if not self._last_choice and not self.reader.done:
            raise TemporaryError("the model server's stream ended before the answer was complete", code="server-failed")
        check_logprobs(self._form, self._has_text, self._has_logprobs)
        with parsing_answer():
            reason = with_calls("content_filter" if self._refused else finish_reason(self._last_choice), self._calls)
            calls = self._calls.end()
        text, reasoning = self._text.end(), self._reasoning.end()
        shown = self._shown_logprobs.push((), text, is_other=bool(reasoning or calls), ends=True)
        chunk = GenerationChunk(text, 0, reason, left_out=left_out, reasoning=reasoning, tool_calls=calls, logprobs=shown)
        return with_counts(chunk, self._counts, self.chunks)
