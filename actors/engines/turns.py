"""Who is next: tenants take turns, and within a tenant the first come is the first served."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue for each tenant. The tenant that was served goes to the end of the round."""

    def __init__(self) -> None:
        self._round: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._round.values()))

    def add(self, tenant: str, item: T, *, first: bool = False) -> None:
        """`first`: ahead of the tenant's others, and the tenant ahead of the round: work that comes back keeps its turn."""
        waiting = self._round.setdefault(tenant, deque())
        if first:
            waiting.appendleft(item)
            self._round.move_to_end(tenant, last=False)
        else:
            waiting.append(item)

    def peek(self) -> T | None:
        return next(iter(self._round.values()))[0] if self._round else None

    def take(self) -> T:
        tenant, waiting = next(iter(self._round.items()))
        item = waiting.popleft()
        if waiting:
            self._round.move_to_end(tenant)
        else:
            del self._round[tenant]
        return item

    def drop(self, tenant: str, item: T) -> bool:
        """Take one out of the middle. False: it was not waiting."""
        waiting = self._round.get(tenant)
        if not waiting or item not in waiting:
            return False
        waiting.remove(item)
        if not waiting:
            del self._round[tenant]
        return True

    def clear(self) -> list[T]:
        items = [item for waiting in self._round.values() for item in waiting]
        self._round.clear()
        return items
