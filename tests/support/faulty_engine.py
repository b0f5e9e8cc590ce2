"""A real engine for the executor's tests: it counts steps, and on command it crashes, hangs, leaves, or takes all memory."""

import ctypes
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.engines.process.protocol import EngineEvent, EngineHost, Finished, Progressed, Started
from bus.errors import PermanentError


@dataclass(frozen=True)
class FaultyRequest:
    """`steps` of `seconds` each. At step `at` it does `deed`. `parcel`: hand in this many bytes."""

    steps: int = 3
    seconds: float = 0.0
    fault: str = ""
    fault_step: int = 1
    output_bytes: int = 0


@dataclass
class FaultyEngine:
    """All its chores advance together, one step a tick."""

    host: EngineHost
    active: dict[int, FaultyRequest] = field(default_factory=dict)
    steps_done: dict[int, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=lambda: {"process": os.getpid()})

    def self_test(self) -> None:
        return

    def submit(self, ticket: int, work: FaultyRequest) -> None:
        if work.steps < 1:
            raise PermanentError("no-steps", "a chore has one step at least")
        self.active[ticket], self.steps_done[ticket] = work, 0

    def cancel(self, ticket: int) -> bool:
        return self.active.pop(ticket, None) is not None

    def idle_seconds(self) -> float | None:
        return 0 if self.active else None

    def tick(self) -> Sequence[EngineEvent]:
        events: list[EngineEvent] = []
        time.sleep(max(chore.seconds for chore in self.active.values()))
        for ticket, chore in list(self.active.items()):
            if self.steps_done[ticket] == 0:
                events.append(Started(ticket))
            self.steps_done[ticket] += 1
            if chore.fault and self.steps_done[ticket] >= chore.fault_step:
                FAULTS[chore.fault]()
            events.append(Progressed(ticket, self.steps_done[ticket], chore.steps))
            if self.steps_done[ticket] == chore.steps:
                del self.active[ticket]
                events.append(Finished(ticket, {"steps": chore.steps, "process": os.getpid()}, self._write_output(ticket, chore)))
        return events

    def _write_output(self, ticket: int, chore: FaultyRequest) -> tuple[Path, ...]:
        if not chore.output_bytes:
            return ()
        file = self.host.shm_dir / f"{ticket}.bin"
        file.write_bytes(b"x" * chore.output_bytes)
        return (file,)

    def close(self) -> None:
        return


def hang_forever() -> None:
    while True:
        time.sleep(3600)


def allocate_until_killed() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(64 << 20))


def raise_error() -> None:
    raise RuntimeError("the engine has lost its temper")


FAULTS = {
    "segfault": lambda: ctypes.string_at(0),
    "hang": hang_forever,
    "exit": lambda: os._exit(7),
    "allocate": allocate_until_killed,
    "raise": raise_error,
}


def open_faulty_engine(options: dict[str, Any] | None, host: EngineHost) -> FaultyEngine:
    """`options`: `unless` is a file without which the engine cannot come up; `marks` is a file that gets a line at each start."""
    options = options or {}
    if marks := options.get("marks"):
        with Path(marks).open("a") as lines:
            lines.write(f"{os.getpid()}\n")
    if (needed := options.get("unless")) and not Path(needed).exists():
        raise RuntimeError(f"{needed} is not there")
    return FaultyEngine(host)
