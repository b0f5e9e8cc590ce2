"""The headers of a dead letter: made fit for a JSON column, and made clean for the way back."""

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from contracts.wire import Header

DEEPEST = 16
LONGEST_TEXT = 100_000

OF_THE_FAILURE = frozenset({
    Header.ATTEMPT.value,
    Header.DEADLINE.value,
    Header.FIRST_FAILED.value,
    Header.LAST_FAILED.value,
    Header.FAULT_CODE.value,
    Header.FAULT_MESSAGE.value,
    Header.EXCEPTION_TYPE.value,
    Header.EXCEPTION_STACK.value,
    Header.REPLAY.value,
})  # fmt: skip
"""What belongs to the failed life. The deadline goes too: it has passed, and the operator wants the work."""

FAN_OUT = frozenset({"cc", "bcc"})
"""The broker would route a copy to every key in these: a replay goes to the queue that failed alone."""


def for_replay(headers: dict[str, Any]) -> dict[str, Any]:
    """What goes along on a replay: neither the broker's headers (their counts would bury it again) nor those of the failure."""
    return {name: value for name, value in headers.items() if not _stays_behind(name)}


def _stays_behind(name: str) -> bool:
    return name.startswith("x-") or name in OF_THE_FAILURE or name.lower() in FAN_OUT


def plain(value: Any, depth: int = 0) -> Any:
    """A header's value as JSON that Postgres takes. Never raises: a letter is kept, whatever a stranger put on it."""
    match value:
        case None | bool() | int():
            return value
        case float() | Decimal():
            return float(value) if math.isfinite(value) else str(value)
        case datetime():
            return moment(value).isoformat()
        case dict() if depth < DEEPEST:
            return {clean(str(name)): plain(part, depth + 1) for name, part in value.items()}
        case list() | tuple() if depth < DEEPEST:
            return [plain(part, depth + 1) for part in value]
        case _:
            return clean(value)


def clean(value: Any) -> str:
    """Text that Postgres takes: no NUL, no half of a surrogate pair, not without end."""
    text = value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)
    return text[:LONGEST_TEXT].replace("\0", "\ufffd").encode(errors="replace").decode()


def moment(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)
