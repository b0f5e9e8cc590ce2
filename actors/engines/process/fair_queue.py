"""A fair queue: round robin over the tenants, first in, first out within a tenant."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """One queue for each tenant. A tenant moves to the end of the round when an item of its is taken."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def push(self, tenant: str, item: T, *, front: bool = False) -> None:
        """`front`: before the tenant's other items, and the tenant before all others; for items that are queued again."""
        queue = self._queues.setdefault(tenant, deque())
        if front:
            queue.appendleft(item)
            self._queues.move_to_end(tenant, last=False)
        else:
            queue.append(item)

    def peek(self) -> T | None:
        return next(iter(self._queues.values()))[0] if self._queues else None

    def pop(self) -> T:
        tenant, queue = next(iter(self._queues.items()))
        item = queue.popleft()
        if queue:
            self._queues.move_to_end(tenant)
        else:
            del self._queues[tenant]
        return item

    def remove(self, tenant: str, item: T) -> bool:
        """Remove an item from anywhere in the queue. False: it was not queued."""
        queue = self._queues.get(tenant)
        if not queue or item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self._queues[tenant]
        return True

    def clear(self) -> list[T]:
        items = [item for queue in self._queues.values() for item in queue]
        self._queues.clear()
        return items
