"""Moments and ages as people write them: `2026-01-31T12:00`, `90s`, `15m`, `2h`, `30d`."""

import re
from datetime import UTC, datetime, timedelta

from ops.errors import SetupError

AGE = re.compile(r"(?P<count>\d+(\.\d+)?)(?P<unit>[smhdw])")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST = 50_000.0
"""Of any unit; more is as good as for ever, and still a date."""

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def since(age: str) -> timedelta:
    """Raises SetupError."""
    match = AGE.fullmatch(age)
    if not match:
        raise SetupError(f"{age!r} is no age: write 90s, 15m, 2h, 30d or 4w")
    return timedelta(**{UNITS[match["unit"]]: min(float(match["count"]), MOST)})


def moment(written: str, now: datetime | None = None) -> datetime:
    """An ISO moment (UTC unless it says otherwise), or an age counted back from now. Raises SetupError."""
    if AGE.fullmatch(written):
        return max(EPOCH, (now or datetime.now(UTC)) - since(written))
    try:
        found = datetime.fromisoformat(written)
    except ValueError:
        raise SetupError(f"{written!r} is no moment: write 2026-01-31T12:00, or an age such as 2h") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
