"""What crosses the pipes between the executor and its process, and what an engine is. Both sides trust each other, so it is pickled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

FailureKind = Literal["permanent", "temporary"]


@dataclass(frozen=True)
class EngineSpec:
    """An engine that the child can open: `factory` is `package.module:function`, called with `options` and a Lifeline."""

    factory_path: str
    options: Any = None


@dataclass(frozen=True)
class OpenEngine:
    """The first frame: what to open, where parcels go, and how much address space may be taken (bytes)."""

    spec: EngineSpec
    shm_dir: Path
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class Submit:
    request_id: int
    request: Any


@dataclass(frozen=True)
class CancelRequest:
    request_id: int


@dataclass(frozen=True)
class StopProcess:
    pass


@dataclass(frozen=True)
class EngineReady:
    """The engine is open and the device has passed its self-test. `info` says what was loaded."""

    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadProgress:
    """Alive, and at something that may be silent for `limit_seconds`: loading, say."""

    activity: str
    timeout_seconds: float
    fraction: float | None = None


@dataclass(frozen=True)
class Started:
    request_id: int


@dataclass(frozen=True)
class Progressed:
    """One step of `total` is done. `preview`: a tiny JPEG, when asked for."""

    request_id: int
    step: int
    total: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Finished:
    """`parcels`: files in the spool that the parent reads and removes."""

    request_id: int
    result: Any
    output_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Failed:
    request_id: int
    kind: FailureKind
    code: str
    message: str


@dataclass(frozen=True)
class Cancelled:
    """Cancelled: the row is free."""

    request_id: int


@dataclass(frozen=True)
class EngineMetrics:
    """What the engine measures of itself. `counters` only grow."""

    counters: dict[str, float]
    gauges: dict[str, float]


EngineEvent = Started | Progressed | Finished | Failed | Cancelled | EngineMetrics


@dataclass(frozen=True)
class TickReport:
    """One tick is done; this is the heartbeat. `seconds`: how long the tick took."""

    events: tuple[EngineEvent, ...]
    seconds: float = 0.0


@dataclass(frozen=True)
class FatalError:
    """The last word of a process that leaves by itself."""

    cause: Literal["memory", "error", "open"]
    message: str


@dataclass(frozen=True)
class ProcessExit:
    """Why a process is no more. `killed`: by the kernel or someone outside; all others it did itself or had coming."""

    cause: Literal["crash", "hang", "memory", "killed", "error", "open", "left"]
    message: str


class MemoryExhausted(Exception):
    """Every rung inside the process has been tried: only a fresh process may help."""


@dataclass(frozen=True)
class EngineHost:
    """What an engine may do towards the outside: `beat` buys silence while loading, `wake()` asks for a tick from any thread."""

    report_load_progress: Callable[[str, float, float | None], None]
    request_tick: Callable[[], None]
    shm_dir: Path


class Engine(Protocol):
    """Owns one device. Called from one thread; whatever it raises from `tick` ends the process."""

    info: dict[str, Any]

    def self_test(self) -> None:
        """Raise when the device does not compute."""

    def submit(self, request_id: int, request: Any) -> None:
        """Check the work and take it in. Raises PermanentError or TemporaryError; then nothing was taken."""

    def cancel(self, request_id: int) -> bool:
        """Drop the work before the next step. False: it is not here any more."""

    def idle_seconds(self) -> float | None:
        """0: tick at once; a number: tick after so long; None: nothing to do until something comes."""

    def tick(self) -> Sequence[EngineEvent]:
        """One bounded piece of work."""

    def close(self) -> None:
        """Let go of the device."""


EngineFactory = Callable[[Any, EngineHost], Engine]
