"""What the doctor found: one check with its cure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """`cure` is empty where nothing is wrong."""

    name: str
    ok: bool
    detail: str
    cure: str = ""


def judged(name: str, trouble: str | None, fine: str, cure: str) -> Check:
    return Check(name, trouble is None, trouble or fine, cure if trouble else "")
