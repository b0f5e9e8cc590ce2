"""The next token of each row: penalties, temperature, top-p and a seed of its own, so that neighbours in the batch change no answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


MIN_TEMPERATURE, MIN_TOP_P, MIN_REPETITION_PENALTY = 1e-5, 1e-6, 0.01
"""What is smaller would be 0 in single precision, or give numbers that it does not hold."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen. `temperature` below MIN_TEMPERATURE: the likeliest one. `seed`: the same seed gives the same
    answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def generator(self) -> "torch.Generator | None":
        """On the CPU, so that each device draws the same numbers. None for a greedy answer."""
        import torch

        return torch.Generator().manual_seed(self.seed) if self.temperature >= MIN_TEMPERATURE else None


class SampledRow(Protocol):
    """What is read of a row."""

    sampling: Sampling
    output_ids: list[int]
    generator: Any


def penalize(logits: "torch.Tensor", seen: "torch.Tensor", rows: Sequence[SampledRow]) -> "torch.Tensor":
    """Logits (rows × vocabulary) with the penalties. `seen`: the tokens of prompt and answer, for the repetition penalty."""
    import torch

    penalty = torch.tensor([[max(row.sampling.repetition_penalty, MIN_REPETITION_PENALTY)] for row in rows], device=logits.device)
    logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    logits = logits.clamp(max=torch.finfo(logits.dtype).max)
    for number, row in enumerate(rows):
        presence, frequency = row.sampling.presence_penalty, row.sampling.frequency_penalty
        if row.output_ids and (presence or frequency):
            counts = torch.bincount(torch.tensor(row.output_ids), minlength=logits.shape[1]).to(logits.device)
            logits[number] -= frequency * counts + presence * (counts > 0)
    return logits


def choose_tokens(logits: "torch.Tensor", rows: Sequence[SampledRow]) -> "torch.Tensor":
    """One token per row. Each row draws one number of its own generator; what other rows do does not change it."""
    import torch

    greedy = logits.argmax(-1)
    drawing = [number for number, row in enumerate(rows) if row.generator is not None]
    if not drawing:
        return greedy
    temperatures = torch.tensor([[rows[number].sampling.temperature] for number in drawing], device=logits.device)
    limits = torch.tensor([[max(rows[number].sampling.top_p, MIN_TOP_P)] for number in drawing], device=logits.device)
    draws = torch.stack([torch.rand(1, generator=rows[number].generator) for number in drawing]).to(logits.device)
    below = logits[drawing] - logits[drawing].amax(-1, keepdim=True)
    likely, tokens = (below / temperatures).softmax(-1).sort(dim=-1, descending=True, stable=True)
    likely = torch.where(likely.cumsum(-1) - likely < limits, likely, 0.0)
    cumulative = likely.cumsum(-1)
    places = (cumulative <= draws * cumulative[:, -1:]).sum(-1, keepdim=True)
    kept = (likely > 0).sum(-1, keepdim=True).clamp(min=1)  # none where no logit is a number: a place outside ends a CUDA process
    greedy[drawing] = tokens.gather(-1, torch.minimum(places, kept - 1))[:, 0]
    return greedy
