"""Parse times and ages on the command line: `2026-01-31T12:00`, `90s`, `15m`, `2h`, `30d`, `4w`."""

import re
from datetime import UTC, datetime, timedelta

from ops.errors import SetupError

AGE_PATTERN = re.compile(r"(?P<count>\d+(\.\d+)?)(?P<unit>[smhdw])")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_COUNT = 50_000.0
"""The limit for every unit: far beyond any letter's age, and still within the range of `timedelta`."""

UNIT_NAMES = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_age(age: str) -> timedelta:
    """Parse an age such as `2h`; a larger count than MAX_COUNT is cut to it. Raises SetupError."""
    match = AGE_PATTERN.fullmatch(age)
    if not match:
        raise SetupError(f"{age!r} is not an age: write 90s, 15m, 2h, 30d or 4w")
    return timedelta(**{UNIT_NAMES[match["unit"]]: min(float(match["count"]), MAX_COUNT)})


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """Parse an ISO 8601 time (in UTC when it has no offset), or an age to subtract from `now`. Raises SetupError."""
    if AGE_PATTERN.fullmatch(text):
        return max(EPOCH, (now or datetime.now(UTC)) - parse_age(text))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise SetupError(f"{text!r} is not a time: write 2026-01-31T12:00, or an age such as 2h") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
