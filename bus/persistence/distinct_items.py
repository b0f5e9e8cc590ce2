"""Arrays of a statement that writes many items: a statement of Postgres can change a row only once.

The ledger and the ingest of dead letters write groups of items so, one execution of their statement for each list.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def split_repeated(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """The items in as few lists as possible, none with two of the same key. Items of one key keep their order, one a list.

    Executed in this order, in one transaction, the statements change each row as often as its items ask for, the last item last.
    """
    lists: list[list[Item]] = []
    seen = Counter[Hashable]()
    for item in items:
        name = key(item)
        if seen[name] == len(lists):
            lists.append([])
        lists[seen[name]].append(item)
        seen[name] += 1
    return lists


def columns_of(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    """The rows as one array for each argument of a statement."""
    return [list(column) for column in zip(*rows, strict=True)]
