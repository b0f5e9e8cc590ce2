"""What crosses the pipes between the executor and its process, and what an engine is. Both sides trust each other, so it is pickled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["permanent", "temporary"]


@dataclass(frozen=True)
class EngineSpec:
    """An engine that the child can open: `factory` is `package.module:function`, called with `options` and a Lifeline."""

    factory: str
    options: Any = None


@dataclass(frozen=True)
class Opening:
    """The first frame: what to open, where parcels go, and how much address space may be taken (bytes)."""

    spec: EngineSpec
    spool: Path
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class Submit:
    ticket: int
    work: Any


@dataclass(frozen=True)
class Cancel:
    ticket: int


@dataclass(frozen=True)
class Stop:
    pass


@dataclass(frozen=True)
class Ready:
    """The engine is open and the device has passed its self-test. `info` says what was loaded."""

    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Beat:
    """Alive, and at something that may be silent for `limit_seconds`: loading, say."""

    note: str
    limit_seconds: float
    share: float | None = None


@dataclass(frozen=True)
class Started:
    ticket: int


@dataclass(frozen=True)
class Advanced:
    """One step of `total` is done. `preview`: a tiny JPEG, when asked for."""

    ticket: int
    step: int
    total: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Finished:
    """`parcels`: files in the spool that the parent reads and removes."""

    ticket: int
    result: Any
    parcels: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Failed:
    ticket: int
    kind: Kind
    code: str
    message: str


@dataclass(frozen=True)
class Gone:
    """Cancelled: the row is free."""

    ticket: int


@dataclass(frozen=True)
class Gauges:
    """What the engine measures of itself. `counters` only grow."""

    counters: dict[str, float]
    levels: dict[str, float]


Event = Started | Advanced | Finished | Failed | Gone | Gauges


@dataclass(frozen=True)
class Pulse:
    """One tick is done; this is the heartbeat. `seconds`: how long the tick took."""

    events: tuple[Event, ...]
    seconds: float = 0.0


@dataclass(frozen=True)
class Broken:
    """The last word of a process that leaves by itself."""

    cause: Literal["memory", "error", "open"]
    message: str


@dataclass(frozen=True)
class Death:
    """Why a process is no more. `killed`: by the kernel or someone outside; all others it did itself or had coming."""

    cause: Literal["crash", "hang", "memory", "killed", "error", "open", "left"]
    message: str


class MemoryExhausted(Exception):
    """Every rung inside the process has been tried: only a fresh process may help."""


@dataclass(frozen=True)
class Lifeline:
    """What an engine may do towards the outside: `beat` buys silence while loading, `wake()` asks for a tick from any thread."""

    beat: Callable[[str, float, float | None], None]
    wake: Callable[[], None]
    spool: Path


class Engine(Protocol):
    """Owns one device. Called from one thread; whatever it raises from `tick` ends the process."""

    info: dict[str, Any]

    def self_test(self) -> None:
        """Raise when the device does not compute."""

    def submit(self, ticket: int, work: Any) -> None:
        """Check the work and take it in. Raises PermanentError or TemporaryError; then nothing was taken."""

    def cancel(self, ticket: int) -> bool:
        """Drop the work before the next step. False: it is not here any more."""

    def idle_seconds(self) -> float | None:
        """0: tick at once; a number: tick after so long; None: nothing to do until something comes."""

    def tick(self) -> Sequence[Event]:
        """One bounded piece of work."""

    def close(self) -> None:
        """Let go of the device."""


Factory = Callable[[Any, Lifeline], Engine]
