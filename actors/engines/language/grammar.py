"""Grammar-constrained decoding: answers satisfy a JSON schema by construction and end within their token limit.

Rule 1: no free whitespace, or a model may generate blanks for ever. Rule 2: when the remaining tokens are only just enough to complete
the answer, it is closed as fast as possible: strings and lists are ended, and of required text the longest token is taken.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bus.errors import PermanentError

if TYPE_CHECKING:
    import torch

CLOSING_TOKENS = ('"', "]", "}", ",")
"""Tried in this order. Inside a string only the quote closes."""
RESERVE_MARGIN_TOKENS = 24
"""Tokens for what may be incomplete when closing begins: the bytes of a character, a value of an enum."""


@dataclass
class GrammarState:
    """The grammar state of one answer. `reserve_tokens`: enough to complete it from any state."""

    matcher: Any
    reserve_tokens: int

    @property
    def terminated(self) -> bool:
        return bool(self.matcher.is_terminated())

    def accept_token(self, token: int) -> None:
        if not self.matcher.accept_token(token):
            raise RuntimeError(f"the grammar rejects token {token}, which its mask allowed")


class GrammarCache:
    """Compiles and caches schemas; masks logits. One per model, since a grammar is bound to a vocabulary."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_token_ids: list[int]) -> None:
        """`vocab_size`: that of the model, which may be larger than the tokenizer's."""
        import torch
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=stop_token_ids)
        # xgrammar's own cache fails an internal check on strings with a pattern (0.2.8), so compiled grammars are cached here.
        self._compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
        self._vocab_size = vocab_size
        tokens = info.decoded_vocab
        self._token_lengths = torch.tensor([len(token) for token in tokens])
        ids = {token: number for number, token in reversed(list(enumerate(tokens)))}
        self._closing_token_ids = [ids[token.encode()] for token in CLOSING_TOKENS if token.encode() in ids]
        self._compiled: dict[str, tuple[Any, int]] = {}

    def start(self, schema: str, max_tokens: int) -> GrammarState:
        """A new state for one answer. Raises PermanentError("schema-refused" · "token-limit-too-small")."""
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
        """The length of the answer that closing from the start gives, found by generating it."""
        import xgrammar

        state = GrammarState(xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True), 0)
        mask, count = xgrammar.allocate_token_bitmask(1, self._vocab_size), 0
        while not state.terminated and count < 100_000:
            state.matcher.fill_next_token_bitmask(mask, 0)
            state.accept_token(self._closing_token(self._unpack_bitmask(mask[0])))
            count += 1
        return count

    def constrain_logits(self, logits: "torch.Tensor", states: list[GrammarState | None], remaining_tokens: list[int]) -> None:
        """Mask in place the logits (rows × vocabulary) of rows with a grammar. `remaining_tokens`: what each row may still generate."""
        import xgrammar

        if not any(states):
            return
        mask = xgrammar.allocate_token_bitmask(len(states), self._vocab_size)
        xgrammar.reset_token_bitmask(mask)
        for row, state in enumerate(states):
            if state:
                state.matcher.fill_next_token_bitmask(mask, row)
                if remaining_tokens[row] <= state.reserve_tokens:
                    only = self._closing_token(self._unpack_bitmask(mask[row]))
                    mask[row] = 0
                    bit = 1 << (only % 32)
                    mask[row, only // 32] = bit - (1 << 32) if bit == 1 << 31 else bit
        logits.masked_fill_(~self._unpack_bitmask(mask.to(logits.device)), float("-inf"))

    def _unpack_bitmask(self, mask: "torch.Tensor") -> "torch.Tensor":
        """The bits of the mask as booleans, one per token, for one row or several."""
        import torch

        bits = (mask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=mask.device)) & 1
        return bits.flatten(-2)[..., : self._vocab_size].bool()

    def _closing_token(self, allowed: "torch.Tensor") -> int:
        """The token that leads to the end of the answer the fastest. `allowed`: one boolean per token."""
        for token in self._closing_token_ids:
            if allowed[token]:
                return int(token)
        return int((self._token_lengths * allowed).argmax())
