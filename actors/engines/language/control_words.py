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
        """The text without them, also those that a removal creates, in linear time: only words, and as many characters behind a removal
        as may complete one, are read one by one.
        """
        if not self.words:
            return text
        longest = len(self._by_length[0])
        kept: list[str] = []
        position = removed_at = single = 0
        while position < len(text):
            if not single:
                match = self._any_word.search(text, max(removed_at, position - longest + 1))
                start = max(position, match.start()) if match else len(text)
                kept.extend(text[position:start])
                position, single = start, match.end() - start if match else 0
                if not match:
                    break
            kept.append(text[position])
            position, single = position + 1, single - 1
            end = "".join(kept[-longest:])
            if end.endswith(self._by_length):
                word = next(word for word in self._by_length if end.endswith(word))
                del kept[-len(word) :]
                removed_at, single = position, max(single, longest - 1)
        return "".join(kept)

    @cached_property
    def _any_word(self) -> "re.Pattern[str]":
        return re.compile("|".join(map(re.escape, self.words)))

    @cached_property
    def _by_length(self) -> tuple[str, ...]:
        """The longest first."""
        return tuple(sorted(self.words, key=len, reverse=True))
