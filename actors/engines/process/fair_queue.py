"""Who is next: tenants take turns, and within a tenant the first come is the first served."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue for each tenant. The tenant that was served goes to the end of the round."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def push(self, tenant: str, item: T, *, front: bool = False) -> None:
        """`first`: ahead of the tenant's others, and the tenant ahead of the round: work that comes back keeps its turn."""
        waiting = self._queues.setdefault(tenant, deque())
        if front:
            waiting.appendleft(item)
            self._queues.move_to_end(tenant, last=False)
        else:
            waiting.append(item)

    def peek(self) -> T | None:
        return next(iter(self._queues.values()))[0] if self._queues else None

    def pop(self) -> T:
        tenant, waiting = next(iter(self._queues.items()))
        item = waiting.popleft()
        if waiting:
            self._queues.move_to_end(tenant)
        else:
            del self._queues[tenant]
        return item

    def remove(self, tenant: str, item: T) -> bool:
        """Take one out of the middle. False: it was not waiting."""
        waiting = self._queues.get(tenant)
        if not waiting or item not in waiting:
            return False
        waiting.remove(item)
        if not waiting:
            del self._queues[tenant]
        return True

    def clear(self) -> list[T]:
        items = [item for waiting in self._queues.values() for item in waiting]
        self._queues.clear()
        return items
