"""A real engine for the executor's tests: it counts steps, and on command it crashes, hangs, leaves, or takes all memory."""

import ctypes
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.engines.protocol import Advanced, Event, Finished, Lifeline, Started
from bus.errors import PermanentError


@dataclass(frozen=True)
class Chore:
    """`steps` of `seconds` each. At step `at` it does `deed`. `parcel`: hand in this many bytes."""

    steps: int = 3
    seconds: float = 0.0
    deed: str = ""
    at: int = 1
    parcel: int = 0


@dataclass
class Clay:
    """All its chores advance together, one step a tick."""

    lifeline: Lifeline
    chores: dict[int, Chore] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=lambda: {"process": os.getpid()})

    def self_test(self) -> None:
        return

    def submit(self, ticket: int, work: Chore) -> None:
        if work.steps < 1:
            raise PermanentError("no-steps", "a chore has one step at least")
        self.chores[ticket], self.done[ticket] = work, 0

    def cancel(self, ticket: int) -> bool:
        return self.chores.pop(ticket, None) is not None

    def idle_seconds(self) -> float | None:
        return 0 if self.chores else None

    def tick(self) -> Sequence[Event]:
        events: list[Event] = []
        time.sleep(max(chore.seconds for chore in self.chores.values()))
        for ticket, chore in list(self.chores.items()):
            if self.done[ticket] == 0:
                events.append(Started(ticket))
            self.done[ticket] += 1
            if chore.deed and self.done[ticket] >= chore.at:
                DEEDS[chore.deed]()
            events.append(Advanced(ticket, self.done[ticket], chore.steps))
            if self.done[ticket] == chore.steps:
                del self.chores[ticket]
                events.append(Finished(ticket, {"steps": chore.steps, "process": os.getpid()}, self._parcels(ticket, chore)))
        return events

    def _parcels(self, ticket: int, chore: Chore) -> tuple[Path, ...]:
        if not chore.parcel:
            return ()
        file = self.lifeline.spool / f"{ticket}.bin"
        file.write_bytes(b"x" * chore.parcel)
        return (file,)

    def close(self) -> None:
        return


def hang() -> None:
    while True:
        time.sleep(3600)


def allocate() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(64 << 20))


def give_up() -> None:
    raise RuntimeError("the engine has lost its temper")


DEEDS = {"segfault": lambda: ctypes.string_at(0), "hang": hang, "exit": lambda: os._exit(7), "allocate": allocate, "raise": give_up}


def open_clay(options: dict[str, Any] | None, lifeline: Lifeline) -> Clay:
    """`options`: `unless` is a file without which the engine cannot come up; `marks` is a file that gets a line at each start."""
    options = options or {}
    if marks := options.get("marks"):
        with Path(marks).open("a") as lines:
            lines.write(f"{os.getpid()}\n")
    if (needed := options.get("unless")) and not Path(needed).exists():
        raise RuntimeError(f"{needed} is not there")
    return Clay(lifeline)
