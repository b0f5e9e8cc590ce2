"""An answer of a model server that arrives in the events of a stream."""

from typing import Any

from actors.engines.language.requests import GenerationChunk
from actors.engines.remote.answers import (
    SurrogateJoiner,
    TokenCounts,
    choice_text,
    ends_answer,
    finish_reason,
    first_choices,
    message_text,
    token_counts,
)
from actors.engines.remote.event_stream import EventReader
from actors.engines.remote.openai_client import parsing_answer
from bus.errors import TemporaryError


class StreamedAnswer:
    """An answer that is put together from the events of a stream, or from the whole completion of a server that does not stream.

    `chunks`: with text, so far.
    """

    def __init__(self) -> None:
        self.reader, self.chunks, self._refused = EventReader(), 0, False
        self._joiner, self._last_choice, self._counts = SurrogateJoiner(), dict[str, Any](), TokenCounts()

    def push(self, event: dict[str, Any]) -> str:
        """The text of one event. Raises TemporaryError for an event that is none of OpenAI's API."""
        text = ""
        with parsing_answer():
            counts = token_counts(event)
            self._counts = counts if counts.completion or counts.prompt else self._counts
            for choice in first_choices(event):
                self._last_choice = choice if ends_answer(choice) or "message" in choice else self._last_choice
                if isinstance(delta := choice.get("delta"), dict):
                    self._refused = self._refused or bool(delta.get("refusal"))
                    text += message_text(delta)
                elif not self.chunks:
                    text += choice_text(choice)
        text = self._joiner.push(text)
        self.chunks += bool(text)
        return text

    def last_chunk(self, left_out: tuple[str, ...]) -> GenerationChunk:
        """Raises TemporaryError for a stream that ended before its answer was complete."""
        if not self._last_choice and not self.reader.done:
            raise TemporaryError("the model server's stream ended before the answer was complete", code="server-failed")
        with parsing_answer():
            reason = "content_filter" if self._refused else finish_reason(self._last_choice)
        return GenerationChunk(self._joiner.end(), self._counts.completion or self.chunks, reason, self._counts.prompt, left_out)
