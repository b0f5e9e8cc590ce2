"""The log probabilities of generated tokens: the model's own, before penalties, temperature and grammar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from contracts.text import Alternative, TokenLogprob

if TYPE_CHECKING:
    import torch


class MeasuredRow(Protocol):
    """What is read of a row. `logprobs`: how many of the likeliest tokens are reported beside each token; None: none is measured."""

    logprobs: int | None
    measured: list["Measured"]


@dataclass(frozen=True)
class Measured:
    """One generated token, and the likeliest ones at its place, each with its log probability."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


def measure_tokens(rows: Sequence[MeasuredRow], logits: "torch.Tensor", tokens: "torch.Tensor") -> None:
    """Append one measurement to each row that wants them. `logits`: of the model, rows × vocabulary; `tokens`: those that were chosen."""
    numbers = [number for number, row in enumerate(rows) if row.logprobs is not None]
    if not numbers:
        return
    values = logits[numbers].float().log_softmax(-1)
    chosen = values.gather(-1, tokens[numbers, None])[:, 0].tolist()
    count = max(rows[number].logprobs or 0 for number in numbers)
    best, best_tokens = values.topk(count, dim=-1)
    for place, number in enumerate(numbers):
        row = rows[number]
        likeliest = list(zip(best_tokens[place].tolist(), best[place].tolist(), strict=True))[: row.logprobs]
        row.measured.append(Measured(int(tokens[number]), chosen[place], tuple(likeliest)))


def describe_tokens(measured: Sequence[Measured], spell: Callable[[int], bytes]) -> tuple[TokenLogprob, ...]:
    """The measurements as the contract has them. `spell`: the UTF-8 bytes of a token; a special token is its name."""

    def fields(token: int, logprob: float) -> dict[str, Any]:
        data = spell(token)
        return {"text": data.decode("utf-8", "replace"), "logprob": max(logprob, LOWEST), "bytes": list(data)}

    return tuple(
        TokenLogprob(**fields(one.token, one.logprob), top=[Alternative(**fields(*entry)) for entry in one.likeliest]) for one in measured
    )


LOWEST = -9999.0
"""Of a token that the model excludes; JSON has no infinity."""
