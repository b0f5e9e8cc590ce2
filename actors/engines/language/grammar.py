"""Grammar-constrained decoding: answers satisfy a JSON schema by construction and end within their token limit.

Rule 1: no free whitespace, or a model may generate blanks for ever. Rule 2: when the remaining tokens are only just enough to complete
the answer, it is closed as fast as possible: strings and lists are ended, and of required text the longest token is taken.
"""

import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.engines.language.compilation import Compilation, Constraint
from actors.engines.process.failures import describe_error
from bus.errors import PermanentError

if TYPE_CHECKING:
    import torch

CLOSING_TOKENS = ("]", "}", '"', ",")
"""Tried in this order. Inside a string the grammar's brackets are text, and only the quote closes."""
RESERVE_MARGIN_TOKENS = 24
"""Tokens for what may be incomplete when closing begins: the bytes of a character, a value of an enum."""
MAX_CACHED_SCHEMAS = 64
SHOWN_WORDS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""Part of an answer's text, also where the tokenizer calls them special."""
DEAD_END = "no further token is admitted, because a part of it has no value"
MAX_SHORTEST_TOKENS = 1024
"""A schema whose shortest answer is longer is refused."""
MAX_TOGETHER_TOKENS = 8192
"""Of the shortest calls of all tools of a request, one of which is required."""
COMPILE_THREADS = 2
MAX_CAUSE_CHARS = 300


@dataclass
class JsonNesting:
    """How many objects and lists are open in the JSON so far, byte by byte."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False

    def read(self, data: bytes) -> None:
        for byte in data:
            if self.in_string:
                self.in_string, self.escaped = self.escaped or byte != 0x22, byte == 0x5C and not self.escaped
            elif byte == 0x22:
                self.in_string = True
            elif byte in b"{[":
                self.depth += 1
            elif byte in b"}]":
                self.depth -= 1


@dataclass
class GrammarState:
    """The grammar state of one answer. `reserve_tokens`: enough to complete it from any state, but for what is nested freely.

    0: it may end anywhere. `is_tag`: it ends with a stop token, and may go on where it could end.
    `error`: the answer cannot be continued, since the schema admits no further token; the answer fails, and no other with it.
    """

    matcher: Any
    shortest_tokens: int
    vocabulary: list[bytes]
    is_tag: bool = False
    error: PermanentError | None = None
    nesting: JsonNesting = field(default_factory=JsonNesting)

    @property
    def reserve_tokens(self) -> int:
        return self.shortest_tokens + self.nesting.depth if self.shortest_tokens else 0

    @property
    def terminated(self) -> bool:
        return bool(self.matcher.is_terminated())

    def accept_token(self, token: int) -> None:
        """Sets `error` for a token that the grammar rejects."""
        try:
            accepted = self.error is None and self.matcher.accept_token(token)
        except RuntimeError as error:
            accepted = self.fail(describe_error(error, MAX_CAUSE_CHARS))
        if accepted:
            self.nesting.read(self.vocabulary[token])
        else:
            self.fail("the grammar rejects a token")

    def fill_mask(self, mask: Any, row: int) -> None:
        """Write the tokens that may follow into one row of the mask; sets `error` when xgrammar fails."""
        try:
            self.matcher.fill_next_token_bitmask(mask, row)
        except RuntimeError as error:
            self.fail(describe_error(error, MAX_CAUSE_CHARS))

    def fail(self, reason: str) -> bool:
        self.error = self.error or PermanentError("schema-refused", f"The JSON schema cannot be satisfied: {reason[:200]}.")
        return False


class GrammarCache:
    """Compiles and caches schemas; masks logits. One per model, since a grammar is bound to a vocabulary."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_token_ids: list[int]) -> None:
        """`vocab_size`: that of the model, which may be larger than the tokenizer's."""
        import torch
        import xgrammar

        info = without_special_tokens(
            xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=stop_token_ids), tokenizer
        )
        # xgrammar's own cache fails an internal check on strings with a pattern (0.2.8), so compiled grammars are cached here.
        self._compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
        self._vocab_size = vocab_size
        self.vocabulary: list[bytes] = info.decoded_vocab
        tokens = self.vocabulary
        self._token_lengths = torch.tensor([len(token) for token in tokens])
        ids = {token: number for number, token in reversed(list(enumerate(tokens)))}
        self._closing_token_ids = [ids[token.encode()] for token in CLOSING_TOKENS if token.encode() in ids]
        self._quote_token_ids = [ids[b'"']] if b'"' in ids else []
        self._stop_token_ids = stop_token_ids
        self._compiled: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._threads = ThreadPoolExecutor(COMPILE_THREADS, "grammar")
        self._compilations: dict[str, Compilation] = {}

    @property
    def longest_token_bytes(self) -> int:
        """Of the tokens that stand for text."""
        return max(map(len, self.vocabulary))

    def compile_in_thread(self, constraint: Constraint) -> Compilation | None:
        """A compilation that one more row waits for; None for one that is compiled already. Rows come in the order of the executor, which
        is fair to the tenants, and no more than the batch holds.
        """
        if constraint.key in self._compiled:
            return None
        self._compilations = {key: other for key, other in self._compilations.items() if not other.is_over}
        compilation = self._compilations.get(constraint.key)
        if compilation is None:
            compilation = self._compilations[constraint.key] = Compilation(constraint)
            self._threads.submit(compilation.run, self._compile)
        compilation.rows += 1
        return compilation

    def start(self, constraint: Constraint, max_tokens: int, compilation: Compilation | None = None) -> GrammarState:
        """A new state for one answer. Raises PermanentError("schema-refused" · "token-limit-too-small"), and what `compilation` raises."""
        key = constraint.key
        compiled, reserve = self._compiled.get(key) or (compilation.result() if compilation else self._compile(Compilation(constraint)))
        self._compiled[key] = compiled, reserve
        self._compiled.move_to_end(key)
        if len(self._compiled) > MAX_CACHED_SCHEMAS:
            self._compiled.popitem(last=False)
        if max_tokens < reserve:
            raise PermanentError("token-limit-too-small", f"{max_tokens} tokens cannot hold the shortest answer; allow at least {reserve}.")
        return self._state(compiled, constraint, reserve)

    def _state(self, compiled: Any, constraint: Constraint, reserve: int) -> GrammarState:
        import xgrammar

        is_tag = constraint.write_tag is not None
        return GrammarState(xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=not is_tag), reserve, self.vocabulary, is_tag)

    def _compile(self, compilation: Compilation) -> tuple[Any, int]:
        """The grammar, and the tokens that an answer needs at least; 0 where it may be free text."""
        constraint = compilation.constraint
        try:
            if constraint.write_tag is not None and (tag := constraint.write_tag()):
                compiled = self._compiler.compile_structural_tag(tag)
                reserve = 0 if constraint.optional else self._longest_of_tags(tag, compilation)
            else:
                schema = json.dumps(rewrite_schema(json.loads(constraint.key)))
                compiled = self._compiler.compile_json_schema(schema, any_whitespace=False)
                reserve = self._shortest_answer_tokens(compiled, compilation, MAX_SHORTEST_TOKENS)
            return compiled, reserve + RESERVE_MARGIN_TOKENS if reserve else 0
        except PermanentError:
            raise
        except Exception as error:
            cause = describe_error(error, MAX_CAUSE_CHARS)
            raise PermanentError("schema-refused", f"the schema cannot constrain an answer: {cause}") from error

    def _longest_of_tags(self, tag: str, compilation: Compilation) -> int:
        """The most tokens that the shortest answer has, whichever is chosen. All of them together have MAX_TOGETHER_TOKENS at most."""
        left, longest = MAX_TOGETHER_TOKENS, 0
        for single in single_tags(tag):
            compilation.check()
            count = self._shortest_answer_tokens(self._compiler.compile_structural_tag(single), compilation, left)
            left, longest = left - count, max(longest, count)
        return longest

    def _shortest_answer_tokens(self, compiled: Any, compilation: Compilation, left: int) -> int:
        """The length of the answer that closing from the start gives, found by generating it. Raises PermanentError for one that is longer
        than MAX_SHORTEST_TOKENS, or than what is `left`.
        """
        import xgrammar

        state = self._state(compiled, compilation.constraint, 0)
        mask, count = xgrammar.allocate_token_bitmask(1, self._vocab_size), 0
        while not state.terminated:
            compilation.check()
            if count >= MAX_SHORTEST_TOKENS:
                raise PermanentError("schema-refused", f"the shortest answer to the schema has more than {MAX_SHORTEST_TOKENS} tokens")
            if count >= left:
                cause = f"the shortest calls of all tools have more than {MAX_TOGETHER_TOKENS} tokens together: shorten their schemas"
                raise PermanentError("schema-refused", cause)
            state.fill_mask(mask, 0)
            if not (allowed := self._unpack_bitmask(mask[0])).any():
                state.fail(DEAD_END)
            state.accept_token(self._closing_token(allowed, state))
            if state.error:
                raise state.error
            count += 1
        return count

    def constrain_logits(self, logits: "torch.Tensor", states: list[GrammarState | None], remaining_tokens: list[int]) -> None:
        """Mask in place the logits (rows × vocabulary) of rows with a grammar. `remaining_tokens`: what each row may still generate.

        A row whose grammar admits no token gets an error and stays as it is: no choice would be left among masked logits.
        """
        import xgrammar

        if not any(states):
            return
        mask = xgrammar.allocate_token_bitmask(len(states), self._vocab_size)
        xgrammar.reset_token_bitmask(mask)
        for row, state in enumerate(states):
            if state:
                state.fill_mask(mask, row)
                if not self._unpack_bitmask(mask[row]).any():
                    state.fail(DEAD_END)
                if state.error:
                    mask[row] = -1
                elif remaining_tokens[row] <= state.reserve_tokens:
                    only = self._closing_token(self._unpack_bitmask(mask[row]), state)
                    mask[row] = 0
                    bit = 1 << (only % 32)
                    mask[row, only // 32] = bit - (1 << 32) if bit == 1 << 31 else bit
        logits.masked_fill_(~self._unpack_bitmask(mask.to(logits.device)), float("-inf"))

    def _unpack_bitmask(self, mask: "torch.Tensor") -> "torch.Tensor":
        """The bits of the mask as booleans, one per token, for one row or several."""
        import torch

        bits = (mask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=mask.device)) & 1
        return bits.flatten(-2)[..., : self._vocab_size].bool()

    def _closing_token(self, allowed: "torch.Tensor", state: GrammarState) -> int:
        """The token that leads to the end of the answer the fastest. `allowed`: one boolean per token."""
        closing = self._quote_token_ids if state.nesting.in_string else self._closing_token_ids
        for token in [*(self._stop_token_ids if state.is_tag else ()), *closing]:
            if allowed[token]:
                return int(token)
        return int((self._token_lengths * allowed).argmax())


def single_tags(tag: str) -> list[str]:
    """A structural tag for each of the answers among which `tag` lets choose."""
    content = json.loads(tag)["format"]
    contents = [single for element in content.get("elements", [content]) for single in element.get("tags", [element])]
    return [json.dumps({"type": "structural_tag", "format": single}) for single in contents]


def without_special_tokens(info: Any, tokenizer: Any) -> Any:
    """The vocabulary with empty special tokens, which no grammar admits: xgrammar takes `<image>` for text, and decoding drops it. Tags of
    calls and reasoning stay. Special are those with a name, and those that the files mark, such as Idefics3's `<row_1_col_1>`.
    """
    import xgrammar

    shown = tokenizer.get_added_vocab()
    marked = (number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special)
    special = {*tokenizer.all_special_ids, *marked} - {shown[word] for word in SHOWN_WORDS if word in shown}
    return xgrammar.TokenizerInfo(
        [b"" if number in special else token for number, token in enumerate(info.decoded_vocab)],
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=info.vocab_size,
        stop_token_ids=info.stop_token_ids,
        add_prefix_space=info.add_prefix_space,
    )


def rewrite_schema(schema: Any) -> Any:
    """The schema in a form that constrains better: required properties first, so that an answer can be closed without optional ones; and
    lengths of strings as patterns without characters that JSON has to escape, some of which xgrammar (0.2.8) would let through; a list of
    types as a choice, so that its strings are among them.
    """
    if isinstance(schema, list):
        return [rewrite_schema(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {name: value if name in ("enum", "const", "default") else rewrite_schema(value) for name, value in schema.items()}
    properties, required = changed.get("properties"), changed.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        changed["properties"] = dict(sorted(properties.items(), key=lambda entry: entry[0] not in required))
    types = changed.get("type")
    if isinstance(types, list) and "string" in types and not {"enum", "const"} & changed.keys():
        rest = {name: value for name, value in changed.items() if name in DEFINITIONS}
        one = {name: value for name, value in changed.items() if name not in DEFINITIONS}
        return rest | {"anyOf": [rewrite_schema(one | {"type": name}) for name in types]}
    if changed.get("type") == "string" and LENGTHS & changed.keys() and not {"pattern", "format", "enum", "const"} & changed.keys():
        shortest, longest = changed.pop("minLength", 0), changed.pop("maxLength", "")
        changed["pattern"] = rf"^{PLAIN_TEXT}{{{shortest},{longest}}}$"
    if isinstance(changed.get("pattern"), str):
        changed["pattern"] = exclude_escaped(changed["pattern"].replace(PLAIN_TEXT, PLAIN_CHARACTERS))
    return changed


def exclude_escaped(pattern: str) -> str:
    """The pattern with plain characters only for `.`."""
    parts: list[str] = []
    escaped = in_class = False
    for char in pattern:
        parts.append(PLAIN_CHARACTERS if char == "." and not escaped and not in_class else char)
        if not escaped:
            in_class = char == "[" or (in_class and char != "]")
        escaped = char == "\\" and not escaped
    return "".join(parts)


PLAIN_TEXT = r"[^\x00-\x1f\x22\x5c\x7f]"
"""The class of characters in the contracts' bounded texts: none needs an escape in JSON."""
PLAIN_CHARACTERS = "[ !#-\\[\\]-~\u0080-\ud7ff\ue000-\U0010ffff]"
"""The same without surrogates: xgrammar would let their bytes through as one character, and decoding makes three of them."""
DEFINITIONS = frozenset({"$defs", "definitions"})
LENGTHS = frozenset({"minLength", "maxLength"})
