"""The text of an answer while it is generated: whole characters only, and cut before the first stop sequence."""

from collections.abc import Sequence
from typing import Any

INCOMPLETE = "\ufffd"
"""What a tokenizer makes of the first bytes of a character whose others are still to come."""
MAX_INCOMPLETE_TOKENS = 8
"""A character has at most four bytes: after so many tokens the bytes are no character, and stay as they are."""


class StopSequences:
    """Cuts a text, which comes in parts, before the first stop sequence. `found`: there was one."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = tuple(sequence for sequence in sequences if sequence)
        self._held = ""
        self.found = False

    def push(self, text: str, *, ends: bool) -> str:
        """What may be sent now. The end that may begin a stop sequence is held back until it is decided; `ends`: nothing follows."""
        if self.found:
            return ""
        self._held += text
        starts = [start for sequence in self._sequences if (start := self._held.find(sequence)) >= 0]
        self.found = bool(starts)
        size = min(starts) if starts else len(self._held) if ends else len(self._held) - self._undecided_chars()
        released, self._held = self._held[:size], self._held[size:]
        return released

    def _undecided_chars(self) -> int:
        """How many characters at the end of the held text begin a stop sequence."""
        longest = max(map(len, self._sequences), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((size for size in sizes if any(sequence.startswith(self._held[-size:]) for sequence in self._sequences)), 0)


class AnswerText:
    """Takes the tokens one by one. `text`: what may be sent."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, StopSequences(stop)
        self._ids: list[int] = []
        self._context_start = self._decoded_end = 0
        self._sent_chars = 0
        self.text = ""

    def append(self, token: int, *, ends: bool) -> bool:
        """Add one token; `ends`: it is the last. True: a stop sequence is complete, and the answer ends before it."""
        self._ids.append(token)
        self.text += self._stop.push(self._decode_new(final=ends), ends=ends)
        return self._stop.found

    def take_new(self) -> tuple[int, str]:
        """The characters that were not taken yet, and the place of the first of them."""
        start, self._sent_chars = self._sent_chars, len(self.text)
        return start, self.text[start:]

    def _decode_new(self, *, final: bool) -> str:
        """The characters that the last tokens complete. They are decoded behind some earlier ones, on which blanks may depend."""
        before = self._decode(self._ids[self._context_start : self._decoded_end])
        after = self._decode(self._ids[self._context_start :])
        waiting = len(self._ids) - self._decoded_end
        if after.endswith(INCOMPLETE) and not final and waiting < MAX_INCOMPLETE_TOKENS:
            return ""
        self._context_start, self._decoded_end = self._decoded_end, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
