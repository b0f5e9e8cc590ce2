"""The control words of a model, such as `<|im_end|>`: text from users must not contain them, or it could write turns of others."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self


@dataclass(frozen=True)
class ControlWords:
    """The words of one tokenizer that stand for one control token each."""

    words: tuple[str, ...]

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, *others: str) -> Self:
        """All special and added tokens, and `others`. Plain blanks and letters that a tokenizer has added are no control words."""
        words = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), *others}
        return cls(tuple(word for word in words if len(word) > 1 and not word.isspace() and not word.isalnum()))

    def remove_from(self, text: str) -> str:
        """The text without them, also those that a removal creates, in one pass: where one may end, the end of what is kept is compared."""
        if not self.words or not self._any_word.search(text):
            return text
        kept: list[str] = []
        for char in text:
            kept.append(char)
            for word in self._words_by_end.get(char, ()):
                if kept[-len(word) :] == list(word):
                    del kept[-len(word) :]
                    break
        return "".join(kept)

    @cached_property
    def _any_word(self) -> "re.Pattern[str]":
        return re.compile("|".join(map(re.escape, self.words)))

    @cached_property
    def _words_by_end(self) -> dict[str, list[str]]:
        """The words by their last character, the longest first."""
        words = sorted(self.words, key=len, reverse=True)
        return {word[-1]: [other for other in words if other[-1] == word[-1]] for word in words}
