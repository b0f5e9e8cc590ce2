"""The id of a message's inbox entry: its message id, bound to its tenant, its job and a digest of its content.

The same message id with other content is another entry: it neither receives the result of the first nor uses up its id.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

ENTRY_SEPARATOR = "#"
VOLATILE_OF_DETACHED = ("fault", "progress")
"""Fields of a detached command that a repeated run of its cause may fill otherwise."""


def entry_id(message_id: str, former_id: str | None, tenant: str | None, job_id: str, content: str) -> str:
    """The id of a message's inbox entry: bound to tenant, job and content, so that an id with other content is another message.

    For one release the former id names the entry, so that a message that was published before the upgrade, and again after it, has one
    entry. The release after that names it by `message_id`, and only looks the former id up.
    """
    bound = hashlib.sha256(json.dumps([tenant or "", job_id, content]).encode()).hexdigest()
    return f"{former_id or message_id}{ENTRY_SEPARATOR}{bound}"


def former_entry_ids(message_id: str, former_id: str | None) -> list[str]:
    """The ids under which earlier releases stored the message, without its content. For one release.

    An id in the form of an entry of this release names none of them: else it would name the entry of another message.
    """
    return [candidate for candidate in {message_id, former_id or message_id} if ENTRY_SEPARATOR not in candidate]


def content_digest(body: bytes, *, detached: bool = False) -> str:
    """The digest of what a command orders: equal for every redelivery, retry and repeated publication of one message, in hex.

    A step that is run again, or whose outcome is published again, builds its next command with other times in the slip's log, and a
    detached command with another fault or progress: these do not count. A body without them is digested as it is.
    """
    volatile = VOLATILE_OF_DETACHED if detached else ()
    if b'"slip"' in body or any(f'"{name}"'.encode() in body for name in volatile):
        with suppress(ValueError, RecursionError):
            body = _canonical_json(_without_volatile(json.loads(body, parse_float=_parse_float), volatile))
    return hashlib.sha256(body).hexdigest()


def _canonical_json(value: Any) -> bytes:
    """Equal for a value and for its copy in a column of type jsonb, which orders keys and holds no U+0000 (`encode_postgres_json`)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).replace("\\u0000", "\\ufffd").encode()


def _parse_float(text: str) -> float | int:
    """A whole number is an int: jsonb turns 1e22 into its digits."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _without_volatile(fields: Any, names: Iterable[str]) -> Any:
    if not isinstance(fields, dict):
        return fields
    kept = {name: value for name, value in fields.items() if name not in names}
    if isinstance(slip := kept.get("slip"), dict):
        kept["slip"] = {name: value for name, value in slip.items() if name != "log"}
    return kept
