"""Continuous batching: requests that are decoded together, one token a step. A row joins and leaves at any step.

The rows' key-value caches are padded on the left to one length and masked there, and each row has its own positions, so that its answer
does not depend on the other rows. A long prompt is read in parts, between which the other rows go on.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.engines.language.answer_text import AnswerText
from actors.engines.language.compilation import Compilation
from actors.engines.language.grammar import GrammarCache, GrammarState
from actors.engines.language.logprobs import Measured, measure_tokens
from actors.engines.language.lora_adapters import BASE
from actors.engines.language.prefix_cache import Layers, Prefix
from actors.engines.language.sampling import Sampling, choose_tokens, penalize

if TYPE_CHECKING:
    import torch


NOT_A_NUMBER = "the model's output is not a number: try another dtype (VLM_DTYPE, VLLM_DTYPE), such as bfloat16 or float32"

PromptPositions = Callable[["torch.Tensor", "torch.Tensor", dict[str, "torch.Tensor"]], tuple["torch.Tensor", int]]
"""Of `ids` and `mask`, (1, tokens), and the inputs of a row with pictures: the positions, (1, tokens) or (3, 1, tokens), and the row's
`position_delta`.
"""


@dataclass(eq=False)
class TokenRow:
    """One request in the batch. `inputs`: what the model takes of it beside the tokens, such as its pictures. `batch_size`: the rows that
    joined together with it. `position_delta`: how far its next position is from its count of tokens, as in models with rotary positions
    of pictures.

    `request`: what was submitted, to start it again. `answer`: the text so far, for requests that are streamed or have stop sequences.
    `compilation`: of the grammar that the row waits for. `adapter`: PEFT's name of its LoRA adapter.

    `owner`: whose prefixes it uses and leaves; None: it uses none. `cached_tokens`: of its prompt, that were read before; `prefix`: their
    caches, until it has its own. `logprobs`: how many of the likeliest tokens are measured beside each token; None: nothing is `measured`.
    """

    request_id: int
    request: Any
    prompt_ids: "torch.Tensor"
    inputs: dict[str, "torch.Tensor"]
    grammar: GrammarState | None
    max_tokens: int
    sampling: Sampling
    answer: AnswerText | None = None
    compilation: Compilation | None = None
    adapter: str | None = None
    owner: Hashable | None = None
    prefix: Prefix | None = None
    cached_tokens: int = 0
    logprobs: int | None = None
    measured: list[Measured] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    batch_size: int = 1
    position_delta: int = 0
    error: Exception | None = None
    generator: Any = field(init=False)

    def __post_init__(self) -> None:
        self.generator = self.sampling.generator()

    @property
    def remaining_tokens(self) -> int:
        return self.max_tokens - len(self.output_ids)

    @property
    def read_ids(self) -> "torch.Tensor":
        """The tokens that the cache holds once the prompt is read: all but the last."""
        import torch

        return torch.cat([self.prompt_ids, torch.tensor(self.output_ids[:-1], dtype=self.prompt_ids.dtype)])

    @property
    def unread_tokens(self) -> int:
        """Of the prompt."""
        return len(self.prompt_ids) - self.cached_tokens


@dataclass(eq=False)
class LongPrompt:
    """A row whose prompt is read in parts. `read_tokens`: how many are in the cache."""

    row: TokenRow
    read_tokens: int = 0
    cache: Any = None

    def __post_init__(self) -> None:
        if self.row.prefix:
            self.read_tokens, self.cache = self.row.prefix.tokens, self.row.prefix.new_cache()
            self.row.prefix = None  # it would hold what has left the prefix cache


class ContinuousBatch:
    """The active rows with their key-value cache, attention mask, and the tokens each has seen (rows × vocabulary)."""

    def __init__(
        self, model: Any, grammars: GrammarCache, stop_token_ids: list[int], vocab_size: int, positions: PromptPositions | None = None
    ) -> None:
        self._model, self._grammars, self._stop_token_ids, self._vocab_size = model, grammars, frozenset(stop_token_ids), vocab_size
        self._positions = positions
        self._has_adapters = hasattr(model, "peft_config")
        self.rows: list[TokenRow] = []
        self._cache: Any = None
        self._attention_mask: Any = None
        self._seen_tokens: Any = None

    def add(self, rows: list[TokenRow]) -> None:
        """Prefill new rows, sample their first token, and merge them into the batch. Rows with pictures are prefilled one by one, since
        their inputs have different shapes.
        """
        for row in rows:
            row.batch_size = len(rows)
        texts = [row for row in rows if not row.inputs and not row.prefix]
        for group in [*([texts] if texts else []), *([row] for row in rows if row.inputs)]:
            self._prefill(group)
        for row in rows:
            if row.prefix:
                self.read_part(LongPrompt(row), row.unread_tokens)

    def _prefill(self, rows: list[TokenRow]) -> None:
        from transformers import DynamicCache

        ids, mask = self._left_padded(rows)
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=self._prompt_positions(rows, ids, mask),
            past_key_values=DynamicCache(),  # a model's own may keep a window only, which cannot be merged
            use_cache=True,
            logits_to_keep=1,
            **inputs_on_device(self._model, rows[0].inputs),
            **self._adapters(rows),
        )
        self._start(rows, output, mask)

    def _prompt_positions(self, rows: list[TokenRow], ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        """The position of each token. What the model's family says of the position after the prompt is kept in the row."""
        if self._positions is None or not rows[0].inputs:
            return (mask.cumsum(-1) - 1).clamp(min=0)
        positions, rows[0].position_delta = self._positions(ids, mask, rows[0].inputs)
        return positions

    def read_part(self, prompt: LongPrompt, max_tokens: int) -> bool:
        """Read up to `max_tokens` more of a long prompt. True: it is read, and its row has joined the batch."""
        import torch
        from transformers import DynamicCache

        start, ids = prompt.read_tokens, prompt.row.prompt_ids.to(self._model.device)
        end = min(len(ids), start + max_tokens)
        output = self._model(
            input_ids=ids[None, start:end],
            attention_mask=torch.ones(1, end, dtype=torch.long, device=ids.device),
            position_ids=torch.arange(start, end, device=ids.device)[None],
            past_key_values=prompt.cache or DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
            **self._adapters([prompt.row]),
        )
        prompt.read_tokens, prompt.cache = end, output.past_key_values
        if end < len(ids):
            return False
        self._start([prompt.row], output, torch.ones(1, end, dtype=torch.long, device=ids.device))
        return True

    def _start(self, rows: list[TokenRow], output: Any, mask: "torch.Tensor") -> None:
        """Sample the first token of rows whose prompt is read, and merge them into the batch."""
        import torch

        seen = torch.zeros(len(rows), self._vocab_size, dtype=torch.bool)
        for number, row in enumerate(rows):
            seen[number, row.prompt_ids] = True
        seen = seen.to(mask.device)
        self._sample(rows, output.logits[:, -1], seen)
        self._merge(rows, output.past_key_values, mask, seen)

    def decode_step(self) -> None:
        """Sample one more token for every row."""
        import torch

        last = torch.tensor([[row.output_ids[-1]] for row in self.rows], device=self._attention_mask.device)
        deltas = torch.tensor([[row.position_delta] for row in self.rows], device=self._attention_mask.device)
        positions = self._attention_mask.sum(-1, keepdim=True) + deltas
        self._attention_mask = torch.cat([self._attention_mask, torch.ones_like(last)], dim=1)
        output = self._model(
            input_ids=last,
            attention_mask=self._attention_mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **self._adapters(self.rows),
        )
        self._cache = output.past_key_values
        self._sample(self.rows, output.logits[:, -1], self._seen_tokens)

    def _adapters(self, rows: list[TokenRow]) -> dict[str, Any]:
        return {"adapter_names": [row.adapter or BASE for row in rows]} if self._has_adapters else {}

    def copy_cache(self, row: TokenRow, tokens: int) -> Layers:
        """A copy of the last `tokens` of a row's cache; it has no gaps."""
        number = self.rows.index(row)
        part = (slice(number, number + 1), slice(None), slice(-tokens, None))
        return [(layer.keys[part].clone(), layer.values[part].clone()) for layer in self._cache.layers]

    def remove(self, rows: list[TokenRow]) -> None:
        """Remove rows, and the cache columns that no other row uses."""
        import torch

        keep = [number for number, row in enumerate(self.rows) if row not in rows]
        self.rows = [self.rows[number] for number in keep]
        if not keep:
            self._cache = self._attention_mask = self._seen_tokens = None
            return
        kept = torch.tensor(keep, device=self._attention_mask.device)
        self._attention_mask, self._seen_tokens = self._attention_mask[kept], self._seen_tokens[kept]
        empty = int(self._attention_mask.argmax(-1).min())
        self._attention_mask = self._attention_mask[:, empty:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[kept, :, empty:], layer.values[kept, :, empty:]

    def _left_padded(self, rows: list[TokenRow]) -> tuple["torch.Tensor", "torch.Tensor"]:
        import torch

        longest = max(len(row.prompt_ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, longest - len(row.prompt_ids) :] = row.prompt_ids
            mask[number, longest - len(row.prompt_ids) :] = 1
        return ids.to(self._model.device), mask.to(self._model.device)

    def _merge(self, rows: list[TokenRow], cache: Any, mask: "torch.Tensor", seen: "torch.Tensor") -> None:
        import torch
        from torch.nn.functional import pad

        if self.rows:
            width = max(mask.shape[1], self._attention_mask.shape[1])
            old_padding, new_padding = width - self._attention_mask.shape[1], width - mask.shape[1]
            for old, new in zip(self._cache.layers, cache.layers, strict=True):
                new.keys = torch.cat([pad(old.keys, (0, 0, old_padding, 0)), pad(new.keys, (0, 0, new_padding, 0))])
                new.values = torch.cat([pad(old.values, (0, 0, old_padding, 0)), pad(new.values, (0, 0, new_padding, 0))])
            mask = torch.cat([pad(self._attention_mask, (old_padding, 0)), pad(mask, (new_padding, 0))])
            seen = torch.cat([self._seen_tokens, seen])
        self.rows, self._cache, self._attention_mask, self._seen_tokens = [*self.rows, *rows], cache, mask, seen

    def _sample(self, rows: list[TokenRow], logits: "torch.Tensor", seen: "torch.Tensor") -> None:
        """Append one admissible token to each row. `logits`: rows × vocabulary. A row whose logits are no numbers ends with an error."""
        invalid = ~logits.amax(-1).isfinite()
        model_logits = logits.float().masked_fill(invalid[:, None], 0.0)
        logits = penalize(model_logits, seen, rows)
        self._grammars.constrain_logits(logits, [row.grammar for row in rows], [row.remaining_tokens for row in rows])
        tokens = choose_tokens(logits, rows)
        measure_tokens(rows, model_logits, tokens)
        seen.scatter_(1, tokens[:, None], value=True)
        for row, token, is_invalid in zip(rows, tokens.tolist(), invalid.tolist(), strict=True):
            if is_invalid:
                row.error, row.finish_reason = ValueError(NOT_A_NUMBER), "error"
            else:
                self._append_token(row, token)

    def _append_token(self, row: TokenRow, token: int) -> None:
        row.output_ids.append(token)
        if row.grammar:
            row.grammar.accept_token(token)
        if row.grammar and row.grammar.error:
            row.finish_reason = "error"
        elif row.grammar.terminated if row.grammar else token in self._stop_token_ids:
            row.finish_reason = "stop"
        elif not row.remaining_tokens:
            row.finish_reason = "length"
        if row.finish_reason != "error" and row.answer and row.answer.append(token, ends=row.finish_reason is not None):
            row.finish_reason = "stop"


def inputs_on_device(model: Any, inputs: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """The inputs on the model's device; what is no integer is in its dtype."""
    return {name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in inputs.items()}
