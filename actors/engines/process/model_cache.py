"""Models in memory: each is loaded once, within a budget; the least recently used is evicted first. What their files lack is an error."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()

SHOWN_KEYS = 3
"""Of the weights that a file lacks, in an error."""


class InsufficientMemory(Exception):
    """The model does not fit beside those that are in use or pinned."""


@dataclass
class CachedModel(Generic[T]):
    model: T
    size_bytes: int


class ModelCache(Generic[T]):
    """`measure` gives the bytes of a model before it is loaded, `measure_loaded` what it takes then (None: as was estimated); `in_use` says
    whether it must stay; `unload` frees it.
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        measure: Callable[[str], int],
        measure_loaded: Callable[[T], int] | None = None,
        load: Callable[[str], T],
        unload: Callable[[T], None],
        in_use: Callable[[str], bool] = lambda _: False,
        pinned: frozenset[str] = frozenset(),
    ) -> None:
        self.budget_bytes, self.pinned, self.loads = budget_bytes, pinned, 0
        self._measure, self._measure_loaded = measure, measure_loaded
        self._load, self._unload, self._in_use = load, unload, in_use
        self._models: OrderedDict[str, CachedModel[T]] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def used_bytes(self) -> int:
        """Of all models, each measured anew: what belongs to a model, such as its LoRAs, grows and shrinks."""
        return sum(self._size(cached) for cached in self._models.values())

    def _size(self, cached: CachedModel[T]) -> int:
        return self._measure_loaded(cached.model) if self._measure_loaded else cached.size_bytes

    @property
    def names(self) -> list[str]:
        """The least recently used first."""
        return list(self._models)

    def get(self, name: str) -> T:
        """The model, loaded if it is not in memory. Concurrent callers wait for the same load; a load that fails caches nothing.

        Raises InsufficientMemory, and what `load` raises.
        """
        with self._lock:
            if name not in self._models:
                self._evict_until_fits(name, size := self._measure(name))
                model = self._load(name)
                self.loads += 1
                self._models[name] = CachedModel(model, size)
                log.info("model.loaded", model=name, bytes=self._size(self._models[name]), expected_bytes=size)
                self._evict_others_beyond_budget(name)
            self._models.move_to_end(name)
            return self._models[name].model

    def _evict_until_fits(self, name: str, size_bytes: int) -> None:
        """A model larger than the whole budget is loaded when it is then alone."""
        evictable = self._evictable()
        while self._models and self.used_bytes + size_bytes > self.budget_bytes:
            if not evictable:
                raise InsufficientMemory(
                    f"{name} needs {size_bytes} bytes beside {', '.join(self._models)}, which must stay; the budget is {self.budget_bytes}"
                )
            self.evict(evictable.pop(0))

    def _evictable(self) -> list[str]:
        return [held for held in self._models if held not in self.pinned and not self._in_use(held)]

    def _evict_others_beyond_budget(self, name: str) -> None:
        """A model that takes more than was estimated displaces those that no order uses."""
        others = [held for held in self._evictable() if held != name]
        while others and self.used_bytes > self.budget_bytes:
            self.evict(others.pop(0))

    def evict(self, name: str) -> None:
        cached = self._models.pop(name)
        size = self._size(cached)
        self._unload(cached.model)
        log.info("model.evicted", model=name, bytes=size)


def load_complete(load: Any, source: str, **arguments: Any) -> Any:
    """The model that `load`, a `from_pretrained` of transformers, gives. Raises ValueError when its files lack weights, since the library
    would fill them with random numbers. Weights that are tied to others, or that the model's class computes by itself, are not missing.
    """
    model, info = load(source, output_loading_info=True, **arguments)
    if missing := info["missing_keys"]:
        raise ValueError(describe_missing(" ".join(filter(None, [source, arguments.get("subfolder")])), missing))
    return model


def describe_missing(place: str, keys: Collection[str]) -> str:
    """Where weights are missing, the first of them, and the cure."""
    shown = ", ".join(sorted(keys)[:SHOWN_KEYS])
    others = f" and {len(keys) - SHOWN_KEYS} others" if len(keys) > SHOWN_KEYS else ""
    return f"{place}: the files lack the weights {shown}{others}: download the checkpoint again"
