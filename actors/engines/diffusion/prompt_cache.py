"""Conditions that were encoded before, so that orders with the same prompt do not run the text encoders again.

A condition is encoded from `encoded_request`, which has the fields of the key and nothing else, so that it depends on nothing beside
the key and the adapters. The conditions of a hit are therefore those that encoding would give, whoever ordered them first.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from actors.engines.diffusion.batching import Condition, RowAdapters
from actors.engines.diffusion.requests import ResolvedRequest

ENCODED_FIELDS = ("prompt", "negative_prompt", "width", "height", "guidance_scale", "true_cfg_scale")
"""What a family may encode. Size and guidance are part of the conditions of some, and decide whether there is a negative half."""


class PromptCache:
    """Of one model. The least recently used conditions are dropped beyond `max_bytes`; 0: nothing is kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.used_bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._entries: OrderedDict[Hashable, tuple[list[Condition], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(
        self, request: ResolvedRequest, adapters: RowAdapters, encode: Callable[[ResolvedRequest], Sequence[Condition]]
    ) -> list[Condition]:
        """The conditions of an order, new dictionaries with shared tensors: these must not be changed.

        `adapters`: those that change a text encoder, with their scales. Raises what `encode` raises; then nothing is kept.
        """
        key = (tuple(getattr(request, name) for name in ENCODED_FIELDS), adapters)
        if key in self._entries:
            self.hits += 1
            self._entries.move_to_end(key)
            conditions = self._entries[key][0]
        else:
            self.misses += 1
            conditions = list(encode(encoded_request(request)))
            self._keep(key, conditions, conditions_bytes(conditions) + text_bytes(request))
        return [dict(condition) for condition in conditions]

    def clear(self) -> None:
        self._entries.clear()
        self.used_bytes = 0

    def _keep(self, key: Hashable, conditions: list[Condition], size: int) -> None:
        if size > self.max_bytes:
            return
        self._entries[key] = conditions, size
        self.used_bytes += size
        while self.used_bytes > self.max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.used_bytes -= dropped


def encoded_request(request: ResolvedRequest) -> ResolvedRequest:
    """The order without what no condition may depend on: seed, steps, scheduler, pictures, adapters and file format."""
    return ResolvedRequest(seed=0, **{name: getattr(request, name) for name in ENCODED_FIELDS})


def conditions_bytes(conditions: Sequence[Condition]) -> int:
    """The bytes of all tensors; conditions without tensors, such as lengths, count nothing."""
    return sum(tensor_bytes(value) for condition in conditions for value in condition.values())


def tensor_bytes(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(tensor_bytes, value))
    return value.nbytes if hasattr(value, "nbytes") else 0


def text_bytes(request: ResolvedRequest) -> int:
    return len(request.prompt.encode()) + len(request.negative_prompt.encode())
