"""The log probabilities of a choice, in the form of chats and in that of raw prompts."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from actors.engines.remote.answers import repair_surrogates
from contracts.text import Alternative, TokenLogprob

MAX_TOKEN_CHARS = 256
"""Of one token: longer ones are cut."""
LEAST = -9999.0
"""In place of minus infinity, as OpenAI writes it."""


def read_logprobs(choice: dict[str, Any], count: int) -> tuple[TokenLogprob, ...]:
    """Empty where the choice has none. `count`: of the likeliest tokens at each place, of which some servers always send five.

    Raises TypeError, LookupError or ValueError for what is no list of them.
    """
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return ()
    if isinstance(tokens := logprobs.get("tokens"), list):
        return _read_raw(tokens, logprobs, count)
    entries = [*(logprobs.get("content") or ()), *(logprobs.get("refusal") or ())]
    return tuple(_read_chat_token(entry, count) for entry in entries)


def _read_chat_token(entry: dict[str, Any], count: int) -> TokenLogprob:
    top = _likeliest((_alternative(other) for other in entry.get("top_logprobs") or ()), count)
    return TokenLogprob(**dict(_alternative(entry)), top=top)


def _likeliest(alternatives: Iterable[Alternative], count: int) -> list[Alternative]:
    """The first `count`, the likeliest first: some servers put the generated token before them."""
    return sorted(alternatives, key=lambda one: -one.logprob)[:count]


def _alternative(entry: dict[str, Any]) -> Alternative:
    data = entry.get("bytes")
    known = (
        data[:MAX_TOKEN_CHARS] if isinstance(data, list) and all(isinstance(value, int) and 0 <= value < 256 for value in data) else None
    )
    return Alternative(text=_token(entry["token"]), logprob=_finite(entry["logprob"]), bytes=known)


def _read_raw(tokens: list[Any], logprobs: dict[str, Any], count: int) -> tuple[TokenLogprob, ...]:
    """Lists with one entry for each token; the likeliest are objects from token to log probability."""
    values, tops = logprobs.get("token_logprobs") or (), logprobs.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        TokenLogprob(text=_token(token), logprob=_finite(value), top=_likeliest(_raw_alternatives(top or {}), count))
        for token, value, top in zip(tokens, values, tops, strict=True)
    )


def _raw_alternatives(values: dict[str, Any]) -> Iterator[Alternative]:
    return (Alternative(text=_token(text), logprob=_finite(value)) for text, value in values.items())


def _token(text: Any) -> str:
    return repair_surrogates(str(text)[:MAX_TOKEN_CHARS])


def _finite(value: Any) -> float:
    """Also of null, which the first token of a prompt has."""
    number = LEAST if value is None else float(value)
    return number if math.isfinite(number) else LEAST
