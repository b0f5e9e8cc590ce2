"""The text of an answer while it is generated: whole characters only, and cut before the first stop sequence."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Any

INCOMPLETE = "\ufffd"
"""What a tokenizer makes of the first bytes of a character whose others are still to come."""
MAX_INCOMPLETE_TOKENS = 8
"""A character has at most four bytes: after so many tokens the bytes are no character, and stay as they are."""


class StopSequences:
    """Cuts a text, which comes in parts, before the first stop sequence. `found`: there was one.

    `until`: behind this text, such as the begin of a tool call, there are none; empty: they are looked for up to the end.
    """

    def __init__(self, sequences: Sequence[str], until: str = "") -> None:
        self._sequences = tuple(sequence for sequence in sequences if sequence)
        self._until = until if self._sequences else ""
        self._held = ""
        self.found = False

    def push(self, text: str, *, ends: bool) -> str:
        """What may be sent now. The end that may begin a stop sequence is held back until it is decided; `ends`: nothing follows."""
        if self.found:
            return ""
        self._held += text
        last = self._held.find(self._until) if self._until else -1
        searched = self._held if last < 0 else self._held[: last + len(self._until) - 1]
        starts = [start for sequence in self._sequences if (start := searched.find(sequence)) >= 0]
        self.found = bool(starts)
        if last >= 0 and not starts:
            self._sequences, self._until = (), ""
        undecided = undecided_chars(self._held, (*self._sequences, *([self._until] if self._until else [])))
        size = min(starts) if starts else len(self._held) if ends else len(self._held) - undecided
        released, self._held = self._held[:size], self._held[size:]
        return released


def undecided_chars(text: str, words: Sequence[str]) -> int:
    """How many characters at the end of `text` begin one of the words."""
    longest = max(map(len, words), default=1) - 1
    sizes = range(min(longest, len(text)), 0, -1)
    return next((size for size in sizes if any(word.startswith(text[-size:]) for word in words)), 0)


class AnswerText:
    """Takes the tokens one by one. `text`: what may be sent. `begin`: text that stands before the tokens.

    `until`: behind this text there are no stop sequences. `shown`: special tokens that are part of the text.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, until: str = "", begin: str = "", shown: Collection[int] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, StopSequences(stop, until)
        self._hidden = hidden_ids(tokenizer, shown) if shown else None
        self._ids: list[int] = []
        self._starts: list[int] = []
        """The place in the text where each token begins."""
        self._context_start = self._decoded_end = 0
        self._sent_chars = 0
        self._decoded_chars = len(begin)
        self.text = begin

    def append(self, token: int, *, ends: bool) -> bool:
        """Add one token; `ends`: it is the last. True: a stop sequence is complete, and the answer ends before it."""
        self._ids.append(token)
        self._starts.append(self._decoded_chars)
        waiting = len(self._ids) - self._decoded_end
        new = self._decode_new(final=ends)
        self._decoded_chars += len(new)
        if waiting > 1 and new and INCOMPLETE not in (own := self._decode([token])) and new.endswith(own):
            self._starts[-1] = self._decoded_chars - len(own)  # what was incomplete before it is no part of its characters
        self.text += self._stop.push(new, ends=ends)
        return self._stop.found

    def tokens_before(self, place: int) -> int:
        """How many tokens begin before this character."""
        return bisect_left(self._starts, place)

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
        shown = ids if self._hidden is None else [token for token in ids if token not in self._hidden]
        text: str = self._tokenizer.decode(shown, skip_special_tokens=self._hidden is None, clean_up_tokenization_spaces=False)
        return text


def hidden_ids(tokenizer: Any, shown: Collection[int]) -> frozenset[int]:
    """The special tokens that are no part of a text."""
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special and number not in shown)
