"""Message ids that can be derived again: a redelivery publishes the same ids, so that whoever comes after sees no second message."""

import hashlib
from uuid import NAMESPACE_URL, uuid5

NAMESPACE = uuid5(NAMESPACE_URL, "https://atelier.invalid/messages")


def derived_id(message_id: str, *parts: str | int) -> str:
    """The id of a message that follows from another one."""
    return str(uuid5(NAMESPACE, "/".join([message_id, *map(str, parts)])))


def body_id(queue: str, body: bytes) -> str:
    """A stable id for a message whose publisher set none: the same body on the same queue is the same message."""
    return derived_id(queue, hashlib.sha256(body).hexdigest())
