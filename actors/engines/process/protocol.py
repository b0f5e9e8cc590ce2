"""The messages between the executor and its model process, pickled since both sides trust each other, and the Engine protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from actors.engines.process.device_time import DeviceTime

FailureKind = Literal["permanent", "temporary"]


@dataclass(frozen=True)
class EngineSpec:
    """An engine that the child can open: `factory_path` is `package.module:function`, called with `options` and an EngineHost."""

    factory_path: str
    options: Any = None


@dataclass(frozen=True)
class OpenEngine:
    """The first frame: which engine to open, the folder for output files, and the limit of the address space (bytes).

    `after_crash`: a process exited with requests, and none was finished since.
    """

    spec: EngineSpec
    shm_dir: Path
    memory_limit_bytes: int | None = None
    after_crash: bool = False


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
    """The engine is open and its self-test has passed. `info`: model, device and other facts for the log."""

    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadProgress:
    """The process is at `activity`, such as loading, and may send nothing for `timeout_seconds`. `fraction` of it is done."""

    activity: str
    timeout_seconds: float
    fraction: float | None = None


@dataclass(frozen=True)
class Started:
    request_id: int


@dataclass(frozen=True)
class Progressed:
    """Step `step` of `total` is done. `preview`: a small JPEG, when the request wants one.

    `text`: characters that are new, the first of them at `text_start`; a request that runs again sends them again. So it is with
    `logprobs`, of tokens from number `logprobs_start` on.
    """

    request_id: int
    step: int
    total: int
    preview: bytes | None = None
    text: str = ""
    text_start: int = 0
    logprobs: tuple[Any, ...] = ()
    logprobs_start: int = 0


@dataclass(frozen=True)
class Finished:
    """`output_files`: files in the `shm_dir` that the parent reads and deletes."""

    request_id: int
    result: Any
    output_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Failed:
    """`error`: the exception itself, where it holds more than code and message; it must be picklable."""

    request_id: int
    kind: FailureKind
    code: str
    message: str
    error: Exception | None = None


@dataclass(frozen=True)
class Cancelled:
    """The request is cancelled and its place in the engine free."""

    request_id: int


@dataclass(frozen=True)
class EngineMetrics:
    """Metrics of the engine by name. `counters` only grow."""

    counters: dict[str, float]
    gauges: dict[str, float]


EngineEvent = Started | Progressed | Finished | Failed | Cancelled | EngineMetrics


@dataclass(frozen=True)
class TickReport:
    """The events of one tick; this is the heartbeat. `busy_seconds`: in which the process has worked for requests since the last report;
    `device_seconds`: their division among the requests, by id, also of cancelled ones.
    """

    events: tuple[EngineEvent, ...]
    busy_seconds: float = 0.0
    device_seconds: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FatalError:
    """The last message of a process that ends itself because of an error."""

    cause: Literal["memory", "device", "error", "open"]
    message: str


@dataclass(frozen=True)
class ProcessExit:
    """Why a process exited. `killed`: with SIGKILL from outside; `hang`: by the executor; `left`: with status 0 or by request.

    `device`: it was lost.
    """

    cause: Literal["crash", "hang", "memory", "device", "killed", "error", "open", "left"]
    message: str


class MemoryExhausted(Exception):
    """Every out-of-memory fallback inside the process was applied: only a new process may help."""


@dataclass(frozen=True)
class EngineHost:
    """What the process offers its engine: `report_load_progress(activity, timeout_seconds, fraction)` announces a time without heartbeat;
    `request_tick()` may be called from any thread. `after_crash`: the self-test should do what a request does, since the device may be
    at fault for the last exit."""

    report_load_progress: Callable[[str, float, float | None], None]
    request_tick: Callable[[], None]
    shm_dir: Path
    after_crash: bool = False


class Engine(Protocol):
    """Owns one device. Called from one thread; an exception from `tick` ends the process. `device_time`: it charges its work there."""

    info: dict[str, Any]
    device_time: DeviceTime

    def self_test(self) -> None:
        """Raises when the device does not compute."""

    def submit(self, request_id: int, request: Any) -> None:
        """Validate and queue a request. Raises PermanentError or TemporaryError; then it is not queued."""

    def cancel(self, request_id: int) -> bool:
        """Drop the request before the next step. False: it is not in the engine any more."""

    def idle_seconds(self) -> float | None:
        """Seconds until the next tick is due; 0: now; None: not before the next request."""

    def tick(self) -> Sequence[EngineEvent]:
        """Do one bounded piece of work, such as one step."""

    def close(self) -> None:
        """Release the device."""
