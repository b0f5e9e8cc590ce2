"""What the input of a response and its conversation may hold, and what takes the place of references to stored items. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from bus.errors import PermanentError
from contracts.responses import MAX_ITEMS, Item, ItemPart

MAX_CHAIN = 200
"""Responses of one conversation."""
MAX_CONVERSATION_BYTES = 8 << 20
"""Of all items of a conversation, as JSON: one request loads so much, and stores at most as much."""


def needs_stored_item(item: Item) -> bool:
    """Whether the stored item with this id is needed: for a reference, and for pictures, which are listed without their bytes."""
    return item.type == "item_reference" or any(lacks_picture(part) for part in item.parts)


def lacks_picture(part: ItemPart) -> bool:
    return part.type == "input_image" and part.picture is None


def with_stored_item(item: Item, stored: Mapping[str, Item]) -> Item:
    """The stored item in place of a reference; else `item` with the stored pictures at their places.

    Raises PermanentError("item-unknown").
    """
    if item.id not in stored:
        raise item_unknown(item.id)
    found = stored[item.id]
    if item.type == "item_reference":
        return found
    changes: dict[str, Any] = {"content": with_pictures(item, item.content, found.content)}
    if isinstance(item.output, list):
        changes["output"] = with_pictures(item, item.output, found.output if isinstance(found.output, list) else [])
    return item.model_copy(update=changes)


def with_pictures(item: Item, parts: Sequence[ItemPart], stored: Sequence[ItemPart]) -> list[ItemPart]:
    """The parts, with the stored picture of the same place where one is missing."""
    pictures = [part.picture for part in stored] + [None] * len(parts)
    completed = [
        part.model_copy(update={"picture": picture}) if lacks_picture(part) else part
        for part, picture in zip(parts, pictures, strict=False)
    ]
    if any(map(lacks_picture, completed)):
        raise PermanentError("item-unknown", f"Item with id {item.id[:80]!r} has no stored image at the place of one without image_url.")
    return completed


def check_ids(items: Sequence[Item]) -> None:
    """Raises PermanentError("item-repeated"): pages are listed by ids, and a reference may not multiply what it names."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            message = f"Duplicate item found with id {item.id[:80]!r}. Remove duplicate items from your input and try again."
            raise PermanentError("item-repeated", message)
        seen.add(item.id)


def check_conversation(items: Sequence[Item]) -> None:
    """Raises PermanentError("conversation-too-long")."""
    check_item_count(len(items))
    check_size(sum(len(item.model_dump_json(exclude_none=True).encode()) for item in items), "the conversation has")


def check_item_count(count: int) -> None:
    """Raises PermanentError("conversation-too-long"). One message is left to the instructions."""
    if count >= MAX_ITEMS:
        raise too_long(f"the conversation has {count} items, {MAX_ITEMS - 1} are allowed")


def check_size(size: int, what: str) -> None:
    """Raises PermanentError("conversation-too-long")."""
    if size > MAX_CONVERSATION_BYTES:
        raise too_long(f"{what} {size} bytes, {MAX_CONVERSATION_BYTES} are allowed")


def check_chain(previous_id: str, chain: Sequence[Mapping[str, Any]]) -> None:
    """`chain`: the previous response and those before it. Raises PermanentError, as `ResponseRepository.load_conversation` says."""
    if not chain:
        message = f"Previous response with id {previous_id[:80]!r} not found."
        raise PermanentError("previous-response-unknown", message)
    if chain[0]["status"] not in ("completed", "incomplete"):
        status = chain[0]["status"]
        message = f"Previous response with id {previous_id!r} is {status}: only one that is completed or incomplete can be continued."
        raise PermanentError("previous-response-unfinished", message)
    if chain[-1]["previous_id"] is None:
        return
    if len(chain) == MAX_CHAIN:
        raise too_long(f"{MAX_CHAIN} responses precede this one")
    message = f"Previous response with id {chain[-1]['previous_id']!r} not found: a response of this conversation was deleted."
    raise PermanentError("previous-response-unknown", message)


def item_unknown(item_id: str) -> PermanentError:
    return PermanentError("item-unknown", f"Item with id {item_id[:80]!r} not found: items are kept of stored responses only.")


def too_long(reason: str) -> PermanentError:
    return PermanentError("conversation-too-long", f"{reason}: begin another conversation, with a summary of this one as input")
