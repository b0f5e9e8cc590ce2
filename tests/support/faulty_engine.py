"""An engine for the executor's tests: it counts steps, and on request it crashes, hangs, exits, or allocates all memory."""

import ctypes
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.engines.process.device_time import DeviceTime
from actors.engines.process.protocol import EngineEvent, EngineHost, Finished, Progressed, Started
from bus.errors import PermanentError


@dataclass(frozen=True)
class FaultyRequest:
    """`steps` of `seconds` each. `fault`, a key of FAULTS, happens at `fault_step`. `output_bytes`: the size of an output file.

    `gate`: a folder. Each step writes the file `began` there, and ends when the test has written `end`.
    """

    steps: int = 3
    seconds: float = 0.0
    fault: str = ""
    fault_step: int = 1
    output_bytes: int = 0
    gate: Path | None = None


@dataclass
class FaultyEngine:
    """All active requests advance together, one step a tick."""

    host: EngineHost
    active: dict[int, FaultyRequest] = field(default_factory=dict)
    steps_done: dict[int, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=lambda: {"process": os.getpid()})
    sick_device: bool = False
    device_time: DeviceTime = field(default_factory=lambda: DeviceTime("cpu"))

    def self_test(self) -> None:
        if self.sick_device and self.host.after_crash:
            raise RuntimeError("the device does not compute")

    def submit(self, request_id: int, request: FaultyRequest) -> None:
        if request.steps < 1:
            raise PermanentError("no-steps", "a request has at least one step")
        self.active[request_id], self.steps_done[request_id] = request, 0

    def cancel(self, request_id: int) -> bool:
        return self.active.pop(request_id, None) is not None

    def idle_seconds(self) -> float | None:
        return 0 if self.active else None

    def tick(self) -> Sequence[EngineEvent]:
        with self.device_time.work_equally(self.active):
            return self._tick()

    def _tick(self) -> Sequence[EngineEvent]:
        events: list[EngineEvent] = []
        time.sleep(max(request.seconds for request in self.active.values()))
        for request in self.active.values():
            if request.gate:
                wait_at_gate(request.gate)
        for request_id, request in list(self.active.items()):
            if self.steps_done[request_id] == 0:
                events.append(Started(request_id))
            self.steps_done[request_id] += 1
            if request.fault and self.steps_done[request_id] >= request.fault_step:
                FAULTS[request.fault]()
            events.append(Progressed(request_id, self.steps_done[request_id], request.steps))
            if self.steps_done[request_id] == request.steps:
                del self.active[request_id]
                result = {"steps": request.steps, "process": os.getpid()}
                events.append(Finished(request_id, result, self._write_output(request_id, request)))
        return events

    def _write_output(self, request_id: int, request: FaultyRequest) -> tuple[Path, ...]:
        if not request.output_bytes:
            return ()
        file = self.host.shm_dir / f"{request_id}.bin"
        file.write_bytes(b"x" * request.output_bytes)
        return (file,)

    def close(self) -> None:
        return


def wait_at_gate(gate: Path) -> None:
    (gate / "began").touch()
    while not (gate / "end").exists():
        time.sleep(0.005)


def hang_forever() -> None:
    while True:
        time.sleep(3600)


def allocate_until_killed() -> None:
    blocks = []
    while True:
        blocks.append(bytearray(64 << 20))


def raise_error() -> None:
    raise RuntimeError("the engine fails on request")


def lose_device() -> None:
    raise RuntimeError("CUDA error: unspecified launch failure")


def exhaust_torch_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4503599627370496 bytes")


FAULTS = {
    "device": lose_device,
    "torch-memory": exhaust_torch_memory,
    "segfault": lambda: ctypes.string_at(0),
    "hang": hang_forever,
    "exit": lambda: os._exit(7),
    "allocate": allocate_until_killed,
    "raise": raise_error,
}


def open_faulty_engine(options: dict[str, Any] | None, host: EngineHost) -> FaultyEngine:
    """`options`: without the file `required_file` the engine cannot start; the file `start_log` gets a line at each start;
    `sick_device`: the self-test after a crash fails."""
    options = options or {}
    if start_log := options.get("start_log"):
        with Path(start_log).open("a") as lines:
            lines.write(f"{os.getpid()}\n")
    if (required := options.get("required_file")) and not Path(required).exists():
        raise RuntimeError(f"{required} does not exist")
    return FaultyEngine(host, sick_device=bool(options.get("sick_device")))
