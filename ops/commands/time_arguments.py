"""Moments and ages as people write them: `2026-01-31T12:00`, `90s`, `15m`, `2h`, `30d`."""

import re
from datetime import UTC, datetime, timedelta

from ops.errors import SetupError

AGE_PATTERN = re.compile(r"(?P<count>\d+(\.\d+)?)(?P<unit>[smhdw])")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_COUNT = 50_000.0
"""Of any unit; more is as good as for ever, and still a date."""

UNIT_NAMES = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_age(age: str) -> timedelta:
    """Raises SetupError."""
    match = AGE_PATTERN.fullmatch(age)
    if not match:
        raise SetupError(f"{age!r} is no age: write 90s, 15m, 2h, 30d or 4w")
    return timedelta(**{UNIT_NAMES[match["unit"]]: min(float(match["count"]), MAX_COUNT)})


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """An ISO moment (UTC unless it says otherwise), or an age counted back from now. Raises SetupError."""
    if AGE_PATTERN.fullmatch(text):
        return max(EPOCH, (now or datetime.now(UTC)) - parse_age(text))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SetupError(f"{text!r} is no moment: write 2026-01-31T12:00, or an age such as 2h") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
