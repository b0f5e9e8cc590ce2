"""Values of AMQP properties and headers, typed and clamped: a publisher may put any type and any size there.

What these functions return can be published again, stored in Postgres and logged. None of them raises.
"""

import contextlib
import hashlib
from datetime import UTC, datetime
from typing import Any

from contracts.identifiers import MAX_ID_BYTES, UNSAFE, is_identifier

SHORT_TEXT_LIMIT = MAX_ID_BYTES
TEXT_LIMIT = 512
"""Bytes of a text header."""
COUNT_LIMIT = 1_000_000
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
"""Between them, a time can be converted to every time zone and added to."""


def read_count(value: Any, *, least: int = 0, most: int = COUNT_LIMIT) -> int:
    """A number from `least` to `most`; `least` for a value that is no number."""
    if value is None:
        return least
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return max(least, min(int(value), most))
    return least


def read_text(value: Any, limit: int = TEXT_LIMIT) -> str | None:
    """A text of at most `limit` bytes, unsafe characters replaced; None for a value that is no text."""
    if value is None:
        return None
    if isinstance(value, bytes | bytearray):
        value = value[:limit].decode(errors="replace")
    if not isinstance(value, str):
        return None
    return UNSAFE.sub("\ufffd", value[:limit]).encode()[:limit].decode(errors="ignore")


def read_id(value: Any) -> str | None:
    """An id as its publisher chose it. The digest of one that is too long or has unsafe characters, so that two ids stay two."""
    if not isinstance(value, str) or not value:
        return None
    return value if is_identifier(value) else hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()


def read_tenant(value: Any) -> str | None:
    """A tenant's name; None for one that breaks the rule of ids, whose message is refused: our own events must not carry it."""
    text = as_text(value)
    return text if is_identifier(text) else None


def as_text(value: Any) -> Any:
    """Some clients write the texts of headers as bytes."""
    return bytes(value).decode(errors="surrogateescape") if isinstance(value, bytes | bytearray) else value


def read_queue_name(value: Any) -> str | None:
    """The name of a queue; None for one that has unsafe characters: a changed name would be that of another queue."""
    return value if isinstance(value, str) and value and read_id(value) == value else None


def read_time(value: Any) -> datetime | None:
    """A time between EARLIEST and LATEST, from a datetime or ISO 8601, in UTC if it has no time zone. None for anything else."""
    if value is None:
        return None
    with contextlib.suppress(TypeError, ValueError):
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return max(EARLIEST, min(moment if moment.tzinfo else moment.replace(tzinfo=UTC), LATEST))
    return None
