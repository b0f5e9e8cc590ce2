"""Questions that are answered together, one token a step. A row joins at any step and leaves at any step.

The rows' caches are padded on the left to one length, masked there, and each row counts its own positions; so a row's answer is the
same alone and beside others.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.engines.vlm import Question
from actors.engines.vlm_grammar import Grammars, Speech

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Row:
    """One question under way. `ids`: the prompt's tokens, `pixels`: the picture as the model sees it."""

    ticket: int
    question: Question
    ids: "torch.Tensor"
    pixels: "torch.Tensor | None"
    speech: Speech | None
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    together: int = 1

    @property
    def left(self) -> int:
        return self.question.max_new_tokens - len(self.tokens)


class Batch:
    """The rows at work and what the model remembers of them."""

    def __init__(self, model: Any, grammars: Grammars, stop_tokens: list[int], vocabulary: int) -> None:
        self._model, self._grammars, self._stop, self._vocabulary = model, grammars, frozenset(stop_tokens), vocabulary
        self.rows: list[Row] = []
        self._cache: Any = None
        self._mask: Any = None
        self._seen: Any = None

    def join(self, rows: list[Row]) -> None:
        """Read the prompts of new rows, say their first token, and put them beside the others."""
        import torch

        ids, mask = self._padded(rows)
        pixels = [row.pixels for row in rows if row.pixels is not None]
        more = {"pixel_values": torch.cat(pixels).to(self._model.device, self._model.dtype)} if pixels else {}
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=True, logits_to_keep=1, **more
        )
        seen = torch.zeros(len(rows), self._vocabulary, dtype=torch.bool)
        for number, row in enumerate(rows):
            seen[number, row.ids] = True
            row.together = len(rows)
        seen = seen.to(ids.device)
        self._say(rows, output.logits[:, -1], seen)
        self._merge(rows, output.past_key_values, mask, seen)

    def step(self) -> None:
        """One more token for every row."""
        import torch

        last = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._mask.device)
        positions = self._mask.sum(-1, keepdim=True)
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        output = self._model(
            input_ids=last, attention_mask=self._mask, position_ids=positions, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = output.past_key_values
        self._say(self.rows, output.logits[:, -1], self._seen)

    def take_out(self, gone: list[Row]) -> None:
        """Let rows go, and the columns that were only theirs."""
        import torch

        keep = [number for number, row in enumerate(self.rows) if row not in gone]
        self.rows = [self.rows[number] for number in keep]
        if not keep:
            self._cache = self._mask = self._seen = None
            return
        chosen = torch.tensor(keep, device=self._mask.device)
        self._mask, self._seen = self._mask[chosen], self._seen[chosen]
        empty = int(self._mask.argmax(-1).min())
        self._mask = self._mask[:, empty:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[chosen, :, empty:], layer.values[chosen, :, empty:]

    def _padded(self, rows: list[Row]) -> tuple["torch.Tensor", "torch.Tensor"]:
        import torch

        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, longest - len(row.ids) :] = row.ids
            mask[number, longest - len(row.ids) :] = 1
        return ids.to(self._model.device), mask.to(self._model.device)

    def _merge(self, rows: list[Row], cache: Any, mask: "torch.Tensor", seen: "torch.Tensor") -> None:
        import torch
        from torch.nn.functional import pad

        if self.rows:
            width = max(mask.shape[1], self._mask.shape[1])
            mine, theirs = width - self._mask.shape[1], width - mask.shape[1]
            for ours, new in zip(self._cache.layers, cache.layers, strict=True):
                new.keys = torch.cat([pad(ours.keys, (0, 0, mine, 0)), pad(new.keys, (0, 0, theirs, 0))])
                new.values = torch.cat([pad(ours.values, (0, 0, mine, 0)), pad(new.values, (0, 0, theirs, 0))])
            mask = torch.cat([pad(self._mask, (mine, 0)), pad(mask, (theirs, 0))])
            seen = torch.cat([self._seen, seen])
        self.rows, self._cache, self._mask, self._seen = [*self.rows, *rows], cache, mask, seen

    def _say(self, rows: list[Row], logits: "torch.Tensor", seen: "torch.Tensor") -> None:
        """Choose each row's next token, the likeliest that it may say."""
        import torch

        logits = logits.float()
        penalty = torch.tensor([[row.question.repetition_penalty] for row in rows], device=logits.device)
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        self._grammars.constrain(logits, [row.speech for row in rows], [row.left for row in rows])
        chosen = logits.argmax(-1)
        seen.scatter_(1, chosen[:, None], value=True)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            self._note(row, token)

    def _note(self, row: Row, token: int) -> None:
        row.tokens.append(token)
        if row.speech:
            row.speech.said(token)
        if row.speech.ended if row.speech else token in self._stop:
            row.finish = "stop"
        elif not row.left:
            row.finish = "length"
