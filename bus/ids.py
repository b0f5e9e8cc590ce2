"""Deterministic message ids: a redelivery publishes the same ids again, so that the next consumer recognises a duplicate.

They are keyed by the secret of the installation, ATELIER_SECRET, so that nobody else can compute the id of a message beforehand. Without
a secret they are the ids of the former scheme, which anybody can compute.
"""

import hashlib
import hmac
from uuid import NAMESPACE_URL, UUID, uuid5

from contracts.wire import Header

NAMESPACE = uuid5(NAMESPACE_URL, "https://atelier.invalid/messages")
MIN_SECRET_LENGTH = 32

_keys: dict[str, bytes] = {}
"""The key of the ids, under its purpose; empty without a secret. Set when a process starts."""


def use_secret(secret: str | None) -> None:
    """Derive ids with this secret from now on, in this process; with None by the former scheme."""
    _keys.clear()
    if secret:
        _keys["ids"] = derive_key(secret, "ids")


def has_secret() -> bool:
    return bool(_keys)


def derive_key(secret: str, purpose: str) -> bytes:
    """A key for one purpose, from which neither the secret nor the key of another purpose can be computed."""
    return hmac.digest(secret.encode(), f"atelier/{purpose}".encode(), "sha256")


def derived_id(message_id: str, *parts: str | int) -> str:
    """The id of a message that another message caused: a UUID of version 8 (RFC 9562)."""
    if not has_secret():
        return public_id(message_id, *parts)
    number = int.from_bytes(hmac.digest(_keys["ids"], _join(message_id, *parts), "sha256")[:16])
    number = number & ~(0xF << 76) | 8 << 76
    return str(UUID(int=number & ~(3 << 62) | 2 << 62))


def public_id(message_id: str, *parts: str | int) -> str:
    """An id that needs no secret: where every process must compute the same one, and as the id that earlier releases derived."""
    return str(uuid5(NAMESPACE, _join(message_id, *parts).decode()))


def body_id(queue: str, body: bytes) -> str:
    """A stable id for a message without one: the same body on the same queue is the same message."""
    return derived_id(queue, hashlib.sha256(body).hexdigest())


def public_body_id(queue: str, body: bytes) -> str:
    """The `body_id` of earlier releases."""
    return public_id(queue, hashlib.sha256(body).hexdigest())


def _join(*parts: str | int) -> bytes:
    return "/".join(map(str, parts)).encode(errors="surrogatepass")


def former_id_header(former_id: str) -> dict[str, str]:
    """The header by which consumers recognise a message of the former scheme; empty when ids are still derived by it."""
    return {Header.FORMER_ID.value: former_id} if has_secret() else {}
