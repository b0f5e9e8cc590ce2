"""The shape of a stack: which functions led to a failure, without line numbers, so that one cause is one group across releases."""

import hashlib
import re
from pathlib import PurePath

FRAME = re.compile(r'^ *File "(?P<file>[^"\n]+)", line \d+, in (?P<function>.+?) *$', re.MULTILINE)
INNERMOST = 8
"""Frames that count. The outer ones are the same for all, and may be cut off."""


def shape_of(stack: str) -> tuple[str, ...]:
    """`room/file.py:function` of the innermost frames, the outer first."""
    frames = [f"{'/'.join(PurePath(frame['file']).parts[-2:])}:{frame['function']}" for frame in FRAME.finditer(stack)]
    return tuple(frames[-INNERMOST:])


def group_of(step: str, code: str, exception_type: str | None, shape: tuple[str, ...]) -> str:
    """The id of a cause: the same step, code, exception and way there."""
    return hashlib.sha256("\0".join([step, code, exception_type or "", *shape]).encode()).hexdigest()[:12]
