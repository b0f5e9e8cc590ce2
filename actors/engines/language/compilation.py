"""Compilations of JSON schemas and tools, which take seconds, in threads beside the batch: each has a limit, and ends with its rows."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from bus.errors import PermanentError, TemporaryError

COMPILE_SECONDS = 10.0
"""Of one compilation. A longer one is refused."""
COMPILE_WAIT_SECONDS = 60.0
"""A compilation that has not begun by then is tried again later."""


@dataclass(frozen=True)
class Constraint:
    """What an answer must be. `key`: the JSON schema, or what a structural tag is written from. `write_tag`: writes the structural tag, in
    the thread that compiles it; None: it is a JSON schema. `optional`: the answer may be free text, which is never closed early.
    """

    key: str
    write_tag: Callable[[], str | None] | None = field(default=None, compare=False)
    optional: bool = False


class Compilation:
    """A schema that is compiled in another thread, while the batch goes on; xgrammar does not hold Python's lock. Rows with the same one
    share it; when the last of them has left it, it is not begun, or it ends at its next step.

    xgrammar itself cannot be interrupted: what a schema may contain is limited before (actors/llm/json_answers.py).
    """

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.future: Future[tuple[Any, int]] = Future()
        self.rows = 0
        self._queued_at = time.monotonic()
        self._began_at: float | None = None
        self._is_left = False

    def run(self, compile_: "Callable[[Compilation], tuple[Any, int]]") -> None:
        """In the thread that compiles."""
        if not self.future.set_running_or_notify_cancel():
            return
        self._began_at = time.monotonic()
        try:
            self.future.set_result(compile_(self))
        except BaseException as error:  # of the rows, which read it
            self.future.set_exception(error)

    def check(self) -> None:
        """Called between two steps. Raises PermanentError("schema-refused") when it has taken too long, or nobody waits for it."""
        if self._is_left or (self._began_at is not None and time.monotonic() > self._began_at + COMPILE_SECONDS):
            raise takes_too_long()

    def leave(self) -> None:
        """A row does not wait for it any more."""
        self.rows -= 1
        if self.rows <= 0:
            self._is_left = True
            self.future.cancel()

    @property
    def is_over(self) -> bool:
        """Whether no other row may share it."""
        has_grammar = not self._is_left and self.future.done() and not self.future.exception()
        return self._is_left or (self.is_due() and not has_grammar)

    def is_due(self) -> bool:
        """Whether there is a result, also an error: that of a compilation, or that it takes too long, or waits too long."""
        limit = self._queued_at + COMPILE_WAIT_SECONDS if self._began_at is None else self._began_at + COMPILE_SECONDS
        return self.future.done() or time.monotonic() > limit

    def result(self) -> tuple[Any, int]:
        """Raises PermanentError("schema-refused"), TemporaryError("engine-full")."""
        if self.future.done():
            return self.future.result()
        if self._began_at is None:
            raise TemporaryError(f"compilations of other JSON schemas take more than {COMPILE_WAIT_SECONDS:g} s", code="engine-full")
        raise takes_too_long()


def takes_too_long() -> PermanentError:
    cause = f"compiling the JSON schema, or those of the tools, takes more than {COMPILE_SECONDS:g} s: simplify it, or send fewer tools"
    return PermanentError("schema-refused", cause)
