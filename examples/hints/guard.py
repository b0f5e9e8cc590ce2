"""The input guard: what a learner may send to the model, and how often."""

import re
import time
from collections import deque
from collections.abc import Callable

MAX_CHARS = 5000
MAX_LINES = 500
LIMITS = ((60.0, 10), (3600.0, 50))
"""Seconds, and the requests that are allowed in them."""
REFUSED = (
    ("it gives the model other instructions", r"\b(ignore|disregard|forget)\b.{0,30}\b(instructions?|rules?|prompts?)\b"),
    ("it gives the model other instructions", r"이전\s*(지시|명령).{0,10}무시"),
    ("it imitates the roles of a conversation", r"<\|\w+\|>|\[/?INST\]|^\s*(system|assistant)\s*:"),
    ("it asks for another role", r"\b(you are now|act as|pretend to be|jailbreak|developer mode)\b"),
    ("it asks for the prompt or for secrets", r"\b(show|print|reveal|tell)\b.{0,20}\b(your|system)\b.{0,10}\b(prompt|key|password)"),
    ("it starts programs or runs text as code", r"\b(os\.system|subprocess|eval|exec|__import__)\s*[.(]"),
    ("it repeats itself", r"(.)\1{199}|(\b\w+\b)(\W+\2\b){99}"),
)
"""Reason, and the pattern of the programs that are refused for it."""


class InputRefused(Exception):
    """The input is not sent to the model. The message has the reason."""


class InputGuard:
    """One learner's guard. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._times = clock, deque[float](maxlen=max(count for _, count in LIMITS))

    def check(self, code: str) -> list[str]:
        """Warnings about `code`. Raises InputRefused; a refused input counts as a request, too."""
        now = self._clock()
        for seconds, count in LIMITS:
            if sum(now - moment < seconds for moment in self._times) >= count:
                raise InputRefused(f"more than {count} hints in {seconds:g} seconds: wait a little")
        self._times.append(now)
        if not code.strip():
            raise InputRefused("the program is empty")
        if len(code) > MAX_CHARS:
            raise InputRefused(f"the program has {len(code)} characters, {MAX_CHARS} are allowed")
        for reason, pattern in REFUSED:
            if re.search(pattern, code, re.IGNORECASE | re.MULTILINE):
                raise InputRefused(reason)
        lines = code.count("\n") + 1
        return [f"the program has {lines} lines: a hint for a part of it is more exact"] if lines > MAX_LINES else []
