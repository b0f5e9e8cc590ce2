"""Deterministic message ids: a redelivery publishes the same ids again, so that the next consumer recognises a duplicate."""

import hashlib
from uuid import NAMESPACE_URL, uuid5

NAMESPACE = uuid5(NAMESPACE_URL, "https://atelier.invalid/messages")


def derived_id(message_id: str, *parts: str | int) -> str:
    """The id of a message that another message caused."""
    return str(uuid5(NAMESPACE, "/".join([message_id, *map(str, parts)])))


def body_id(queue: str, body: bytes) -> str:
    """A stable id for a message without one: the same body on the same queue is the same message."""
    return derived_id(queue, hashlib.sha256(body).hexdigest())
