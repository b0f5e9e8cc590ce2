"""Answers that satisfy a JSON schema by construction, and that end in time.

Rule 1: no free whitespace, or a model may say blanks for ever. Rule 2: when the tokens left are only just enough to close what is open,
the shortest way to the end is taken: strings are closed, lists are ended, and of what must be said anyway the longest token.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bus.errors import PermanentError

if TYPE_CHECKING:
    import torch

CLOSING_TOKENS = ('"', "]", "}", ",")
"""Looked for in this order. Inside a string the quote is the only one that closes."""
RESERVE_MARGIN_TOKENS = 24
"""Tokens for what may be half said when closing begins: a letter's bytes, a word of a choice."""


@dataclass
class GrammarState:
    """The grammar of one answer under way. `reserve`: tokens with which it can be brought to its end from anywhere."""

    matcher: Any
    reserve_tokens: int

    @property
    def terminated(self) -> bool:
        return bool(self.matcher.is_terminated())

    def accept_token(self, token: int) -> None:
        if not self.matcher.accept_token(token):
            raise RuntimeError(f"the grammar does not admit token {token}, which it offered")


class GrammarCache:
    """Compiles schemas and keeps them; masks logits. One per model, since a grammar is bound to a vocabulary."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_token_ids: list[int]) -> None:
        """`vocabulary`: the model's own size, which may be larger than the tokenizer's."""
        import torch
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=stop_token_ids)
        # Its own cache fails an inner check on texts bounded by a pattern (0.2.8), so what is compiled is kept here.
        self._compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
        self._vocab_size = vocab_size
        spelled = info.decoded_vocab
        self._token_lengths = torch.tensor([len(word) for word in spelled])
        ids = {word: number for number, word in reversed(list(enumerate(spelled)))}
        self._closing_token_ids = [ids[closer.encode()] for closer in CLOSING_TOKENS if closer.encode() in ids]
        self._compiled: dict[str, tuple[Any, int]] = {}

    def start(self, schema: str, max_tokens: int) -> GrammarState:
        """A fresh grammar for one answer. Raises PermanentError("schema-refused" · "token-limit-too-small")."""
        import xgrammar

        if schema not in self._compiled:
            try:
                compiled = self._compiler.compile_json_schema(json.dumps(json.loads(schema)), any_whitespace=False)
            except Exception as error:
                raise PermanentError("schema-refused", f"the schema cannot constrain an answer: {error}") from error
            self._compiled[schema] = compiled, self._shortest_answer_tokens(compiled) + RESERVE_MARGIN_TOKENS
        compiled, reserve = self._compiled[schema]
        if max_tokens < reserve:
            raise PermanentError("token-limit-too-small", f"{max_tokens} tokens cannot hold the shortest answer; allow at least {reserve}.")
        return GrammarState(xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True), reserve)

    def _shortest_answer_tokens(self, compiled: Any) -> int:
        """Tokens of the answer that closing leads to from the start. Found by saying it."""
        import xgrammar

        speech = GrammarState(xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True), 0)
        mask, count = xgrammar.allocate_token_bitmask(1, self._vocab_size), 0
        while not speech.terminated and count < 100_000:
            speech.matcher.fill_next_token_bitmask(mask, 0)
            speech.accept_token(self._closing_token(self._unpack_bitmask(mask[0])))
            count += 1
        return count

    def constrain_logits(self, logits: "torch.Tensor", states: list[GrammarState | None], remaining_tokens: list[int]) -> None:
        """Mask, in place, the logits (rows × vocabulary) of rows that have a grammar. `left`: tokens that each may still say."""
        import xgrammar

        if not any(states):
            return
        mask = xgrammar.allocate_token_bitmask(len(states), self._vocab_size)
        xgrammar.reset_token_bitmask(mask)
        for row, speech in enumerate(states):
            if speech:
                speech.matcher.fill_next_token_bitmask(mask, row)
                if remaining_tokens[row] <= speech.reserve_tokens:
                    only = self._closing_token(self._unpack_bitmask(mask[row]))
                    mask[row] = 0
                    bit = 1 << (only % 32)
                    mask[row, only // 32] = bit - (1 << 32) if bit == 1 << 31 else bit
        logits.masked_fill_(~self._unpack_bitmask(mask.to(logits.device)), float("-inf"))

    def _unpack_bitmask(self, mask: "torch.Tensor") -> "torch.Tensor":
        """The mask's bits, one boolean per token, for one row or several."""
        import torch

        bits = (mask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=mask.device)) & 1
        return bits.flatten(-2)[..., : self._vocab_size].bool()

    def _closing_token(self, allowed: "torch.Tensor") -> int:
        for closer in self._closing_token_ids:
            if allowed[closer]:
                return int(closer)
        return int((self._token_lengths * allowed).argmax())
