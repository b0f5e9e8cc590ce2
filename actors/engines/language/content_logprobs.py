"""The log probabilities of an answer's content: the tokens of its reasoning and of its tool calls have none."""

from collections.abc import Sequence
from itertools import accumulate

from contracts.text import TokenLogprob


class ContentLogprobs:
    """Picks those of the content out of the tokens of one answer, which come with the parts that they make up.

    Tokens that make up nothing yet, such as half a character or the begin of a marker, wait for what follows.
    """

    def __init__(self) -> None:
        self._held: tuple[TokenLogprob, ...] = ()
        self._in_content = True

    def push(self, tokens: tuple[TokenLogprob, ...], content: str, *, is_other: bool, ends: bool = False) -> tuple[TokenLogprob, ...]:
        """`content`: what was added to it. `is_other`: something was added to the reasoning or a tool call. `ends`: nothing follows."""
        tokens = self._held + tokens
        if not (content or is_other or ends):
            self._held = tokens
            return ()
        picked = tokens if self._in_content and not is_other else tokens_of(tokens, content) if content else ()
        self._held, self._in_content = (), bool(content) or (self._in_content and not is_other)
        return picked


def tokens_of(tokens: Sequence[TokenLogprob], content: str) -> tuple[TokenLogprob, ...]:
    """Those that make up `content`, which is a part of what all spell: the last such part, where it can begin with a token.

    All where none does, as with a server whose tokens are not spelled as its text.
    """
    spelled = [token.text.encode(errors="surrogatepass") if token.bytes is None else bytes(token.bytes) for token in tokens]
    text, wanted = b"".join(spelled), content.encode(errors="surrogatepass")
    begins = list(accumulate(map(len, spelled), initial=0))
    found = [begin for begin in begins if text.startswith(wanted, begin)] or [text.rfind(wanted)]
    if found[-1] < 0:
        return tuple(tokens)
    first, end = found[-1], found[-1] + len(wanted)
    return tuple(token for number, token in enumerate(tokens) if begins[number] < end and begins[number + 1] > first)
