"""The control words of a model, such as `<|im_end|>`: text from users must not contain them, or it could write turns of others."""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self


@dataclass(frozen=True)
class ControlWords:
    """The words of one tokenizer that stand for one control token each; each has two characters or more."""

    words: tuple[str, ...]

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, *others: str) -> Self:
        """All special and added tokens, and `others`. Plain blanks and letters that a tokenizer has added are no control words."""
        words = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), *others}
        return cls(tuple(word for word in words if len(word) > 1 and not word.isspace() and not word.isalnum()))

    def remove_from(self, text: str) -> str:
        """The text without them, also those that a removal creates. A word ends where one of its last characters was read, and only there
        it is looked for, so that the time grows with the text, and little with the number of words.
        """
        if not self.words:
            return text
        kept: list[str] = []
        position = 0
        for match in self._last_characters.finditer(text):
            kept.extend(text[position : match.end()])
            position = match.end()
            lengths = self._lengths.get("".join(kept[-2:]))
            if lengths and (length := self._word_length("".join(kept[-lengths[0] :]), lengths)):
                del kept[-length:]
        kept.extend(text[position:])
        return "".join(kept)

    def _word_length(self, end: str, lengths: tuple[int, ...]) -> int:
        """That of the longest word with which the text ends; 0: there is none."""
        return next((length for length in lengths if end[-length:] in self._words), 0)

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(self.words)

    @cached_property
    def _last_characters(self) -> "re.Pattern[str]":
        return re.compile("[" + "".join(sorted({re.escape(word[-1]) for word in self.words})) + "]")

    @cached_property
    def _lengths(self) -> dict[str, tuple[int, ...]]:
        """By the last two characters of words: their lengths, the largest first."""
        lengths = defaultdict[str, set[int]](set)
        for word in self.words:
            lengths[word[-2:]].add(len(word))
        return {end: tuple(sorted(found, reverse=True)) for end, found in lengths.items()}
