"""Models in memory: each loaded once, within a budget, the least recently used leaving first."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()


class NoRoom(Exception):
    """The model does not fit beside those that are at work or pinned."""


@dataclass
class Resident(Generic[T]):
    model: T
    size: int


class Residency(Generic[T]):
    """`measure` tells a model's bytes before it is loaded; `busy` names those that rows are using; `unload` lets one go."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        measure: Callable[[str], int],
        load: Callable[[str], T],
        unload: Callable[[T], None],
        busy: Callable[[str], bool] = lambda _: False,
        pinned: frozenset[str] = frozenset(),
    ) -> None:
        self.budget, self.pinned, self.loads = budget_bytes, pinned, 0
        self._measure, self._load, self._unload, self._busy = measure, load, unload, busy
        self._held: OrderedDict[str, Resident[T]] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def used_bytes(self) -> int:
        return sum(resident.size for resident in self._held.values())

    @property
    def names(self) -> list[str]:
        """The least recently used first."""
        return list(self._held)

    def get(self, name: str) -> T:
        """The model, loaded if it is not here. Whoever asks meanwhile waits for the same load; a load that fails leaves nothing behind.

        Raises NoRoom, and whatever the load raised.
        """
        with self._lock:
            if name not in self._held:
                self._make_room(name, size := self._measure(name))
                model = self._load(name)
                self.loads += 1
                self._held[name] = Resident(model, size)
                log.info("model.loaded", model=name, bytes=size, resident_bytes=self.used_bytes)
            self._held.move_to_end(name)
            return self._held[name].model

    def _make_room(self, name: str, size: int) -> None:
        """A model larger than the whole budget may still come, when it is then alone."""
        leavers = [held for held in self._held if held not in self.pinned and not self._busy(held)]
        while self._held and self.used_bytes + size > self.budget:
            if not leavers:
                raise NoRoom(f"{name} needs {size} bytes beside {', '.join(self._held)}, which stay; the budget is {self.budget}")
            self.evict(leavers.pop(0))

    def evict(self, name: str) -> None:
        resident = self._held.pop(name)
        self._unload(resident.model)
        log.info("model.left", model=name, bytes=resident.size)
