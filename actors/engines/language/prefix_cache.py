"""The key-value caches of prompts and answers that were read, so that the next prompt that begins like one of them is read from there on.

Each belongs to one owner, a tenant with an adapter, and is never found by another.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    import torch

log = structlog.get_logger()

Layers = list[tuple["torch.Tensor", "torch.Tensor"]]
"""Keys and values of each layer, (1, heads, tokens, width)."""
MIN_TOKENS = 16
"""Fewer are read again: that costs less than a row that is read alone."""
MAX_ENTRIES = 256


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first `tokens` of a prompt, which were read before."""

    tokens: int
    layers: Layers

    def new_cache(self) -> Any:
        """A cache of its own, to which a model may append."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys[:, :, : self.tokens], values[:, :, : self.tokens], number)
        return cache


@dataclass(frozen=True, eq=False)
class Entry:
    """`ids`: the tokens that are in the cache, on the CPU."""

    owner: Hashable
    ids: "torch.Tensor"
    layers: Layers

    @property
    def size(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What all entries have in common that a prompt may hit."""
        return entry_key(self.owner, self.ids)


class PrefixCache:
    """At most `max_bytes` of key-value caches, those used last. `size`: bytes now. `hit_tokens`: of prompts, found so far."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = self.hit_tokens = 0
        self._bytes_per_token = 0
        self._entries: OrderedDict[Entry, None] = OrderedDict()
        """The one used last at the end."""
        self._by_key: dict[tuple[Hashable, ...], list[Entry]] = {}

    def find(self, owner: Hashable, ids: "torch.Tensor") -> Prefix | None:
        """The longest begin of `ids` that was read before, without the last token: a model needs one to go on."""
        best, longest = None, MIN_TOKENS - 1
        for entry in self._by_key.get(entry_key(owner, ids), ()) if self.max_bytes else ():
            tokens = min(common_tokens(entry.ids, ids), len(ids) - 1)
            if tokens > longest:
                best, longest = entry, tokens
        if best is None:
            return None
        self._entries.move_to_end(best)
        return Prefix(longest, best.layers)

    def keep(self, owner: Hashable, ids: "torch.Tensor", layers: Layers) -> None:
        """Keep a cache, in the place of those that it continues. The ones that were not used for the longest time leave."""
        entry = Entry(owner, ids.clone(), layers)
        self._bytes_per_token = entry.size // len(ids)
        if len(ids) < MIN_TOKENS or entry.size > self.max_bytes:
            return
        for other in list(self._by_key.get(entry.key, ())):
            if common_tokens(other.ids, ids) == len(other.ids):
                self._remove(other)
        self._entries[entry] = None
        self._by_key.setdefault(entry.key, []).append(entry)
        self.size += entry.size
        while self.size > self.max_bytes or len(self._entries) > MAX_ENTRIES:
            self._remove(next(iter(self._entries)))

    def holds(self, owner: Hashable, ids: "torch.Tensor") -> bool:
        """Whether an entry begins with all of `ids`."""
        return any(common_tokens(entry.ids, ids) == len(ids) for entry in self._by_key.get(entry_key(owner, ids), ()))

    def clear(self) -> None:
        self._entries.clear()
        self._by_key.clear()
        self.size = 0

    def fits(self, tokens: int) -> bool:
        """Whether a cache of so many tokens is kept. Any is, until the first one shows how large it is."""
        return tokens * self._bytes_per_token <= self.max_bytes

    def give_back(self) -> None:
        """Memory ran out: drop all, and hold a quarter of it at most from now on, but no less than an eighth of what was allowed."""
        before, held = self.max_bytes, self.size
        self.max_bytes = max(held // 4, before // 8)
        self.clear()
        log.warning("engine.prefix_cache_reduced", held_bytes=held, max_bytes_before=before, max_bytes=self.max_bytes)

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry]
        self._by_key[entry.key].remove(entry)
        if not self._by_key[entry.key]:
            del self._by_key[entry.key]
        self.size -= entry.size


def entry_key(owner: Hashable, ids: "torch.Tensor") -> tuple[Hashable, ...]:
    return owner, *ids[:MIN_TOKENS].tolist()


def common_tokens(first: "torch.Tensor", second: "torch.Tensor") -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    different = (first[:length] != second[:length]).nonzero()
    return int(different[0, 0]) if len(different) else length
