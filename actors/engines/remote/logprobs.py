"""The log probabilities of a choice, in the form of chats and in that of raw prompts."""

import math
from collections.abc import Iterable
from typing import Any

from actors.engines.remote.answers import repair_surrogates
from contracts.text import Alternative, TokenLogprob

MAX_TOP, MAX_TOKEN_CHARS = 20, 256
"""Alternatives at one place, and characters of one token: longer ones are cut."""
LEAST = -9999.0
"""In place of minus infinity, as OpenAI writes it."""


def read_logprobs(choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    """Empty where the choice has none. Raises TypeError, LookupError or ValueError for what is no list of them."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return ()
    if isinstance(tokens := logprobs.get("tokens"), list):
        return _read_raw(tokens, logprobs)
    entries = [*(logprobs.get("content") or ()), *(logprobs.get("refusal") or ())]
    return tuple(_read_chat_token(entry) for entry in entries)


def _read_chat_token(entry: dict[str, Any]) -> TokenLogprob:
    top = [_alternative(other) for other in (entry.get("top_logprobs") or ())[:MAX_TOP]]
    return TokenLogprob(**dict(_alternative(entry)), top=top)


def _alternative(entry: dict[str, Any]) -> Alternative:
    data = entry.get("bytes")
    known = (
        data[:MAX_TOKEN_CHARS] if isinstance(data, list) and all(isinstance(value, int) and 0 <= value < 256 for value in data) else None
    )
    return Alternative(text=_token(entry["token"]), logprob=_finite(entry["logprob"]), bytes=known)


def _read_raw(tokens: list[Any], logprobs: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    """Lists with one entry for each token; the likeliest are objects from token to log probability."""
    values, tops = logprobs.get("token_logprobs") or (), logprobs.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        TokenLogprob(text=_token(token), logprob=_finite(value), top=_raw_alternatives((top or {}).items()))
        for token, value, top in zip(tokens, values, tops, strict=True)
    )


def _raw_alternatives(items: Iterable[tuple[str, Any]]) -> list[Alternative]:
    return [Alternative(text=_token(text), logprob=_finite(value)) for text, value in list(items)[:MAX_TOP]]


def _token(text: Any) -> str:
    return repair_surrogates(str(text)[:MAX_TOKEN_CHARS])


def _finite(value: Any) -> float:
    """Also of null, which the first token of a prompt has."""
    number = LEAST if value is None else float(value)
    return number if math.isfinite(number) else LEAST
