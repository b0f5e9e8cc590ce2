"""The bounded executor: work in, results out, and a process that may hang, crash or be killed without losing any of it.

Rule 1: so many orders are in hand, the rest waits in the broker. Rule 2: the loop only awaits. Rule 3: work that was in a process that
died runs again, alone; what dies alone again is the culprit. Rule 4: only what nobody can run is given back, as EngineDead.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from actors.engines.process.fair_queue import FairQueue
from actors.engines.process.process_handle import ProcessHandle
from actors.engines.process.protocol import (
    Cancelled,
    CancelRequest,
    EngineEvent,
    EngineMetrics,
    EngineSpec,
    Failed,
    Finished,
    OpenEngine,
    ProcessExit,
    Progressed,
    Started,
    StopProcess,
    Submit,
    TickReport,
)
from actors.engines.process.restart import CircuitBreaker, CrashAttribution
from actors.engines.process.shm_dir import create_shm_dir
from actors.engines.process.stats import ExecutorStats
from actors.engines.settings import ExecutorSettings
from bus.errors import EngineCrashed, PermanentError, TemporaryError

log = structlog.get_logger()

StepCallback = Callable[[Progressed], None]
SetUnready = Callable[[str | None], None]

DEFAULT_STEP_SECONDS = 60.0


@dataclass(frozen=True)
class ExecutionResult:
    """What came of one order: the engine's own result, the bytes of its parcels, and the seconds it waited and was at work."""

    result: Any
    outputs: list[bytes]
    queued_seconds: float
    compute_seconds: float


@dataclass(eq=False)
class RequestState:
    """One order in hand."""

    request: Any
    tenant: str
    weight: int
    deadline: datetime | None
    on_progress: StepCallback | None
    future: "asyncio.Future[Finished]"
    alone: bool = False
    caller_gone: bool = False
    crashes: CrashAttribution = field(default_factory=CrashAttribution)
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    request_id: int = 0

    @property
    def expired(self) -> bool:
        return self.deadline is not None and datetime.now(UTC) >= self.deadline


class Executor:
    """Give it work with `run`. `unready` is told why no work can be done, and None when it can be again."""

    def __init__(
        self, spec: EngineSpec, settings: ExecutorSettings, *, max_in_flight: int, capacity: int, shm_dir: Path, set_unready: SetUnready
    ) -> None:
        self.spec, self.settings, self.max_in_flight, self.capacity, self.shm_dir = spec, settings, max_in_flight, capacity, shm_dir
        self.unready_reason: str | None = "the model process is starting"
        self.info: dict[str, Any] = {}
        self.stats = ExecutorStats()
        self._set_unready = set_unready
        self._breaker = CircuitBreaker(settings.failures_before_open, settings.first_wait_seconds, settings.longest_wait_seconds)
        self._queue: FairQueue[RequestState] = FairQueue()
        self._running: dict[int, RequestState] = {}
        self._process: ProcessHandle | None = None
        self._engine_open = asyncio.Event()
        self._closing = asyncio.Event()
        self._last_request_id = 0

    @property
    def healthy(self) -> bool:
        """False while starting and while the engine cannot come up; `reason` says which."""
        return self.unready_reason is None

    @property
    def in_flight(self) -> int:
        """What somebody waits for. A cancelled order may still hold its place in the engine, until its next step."""
        return len(self._queue) + sum(not job.caller_gone for job in self._running.values())

    @property
    def step_seconds(self) -> float:
        """As set, else as the engine thinks right for its device."""
        return self.settings.step_seconds or float(self.info.get("step_seconds", DEFAULT_STEP_SECONDS))

    @property
    def process_id(self) -> int | None:
        return self._process.process.pid if self._process else None

    async def ready(self) -> None:
        """Wait until the engine is open."""
        await self._engine_open.wait()

    async def unavailable_reason(self) -> str | None:
        """Why no work would be begun now."""
        return self.unready_reason or (None if self._engine_open.is_set() else "the model process died and is started again")

    def snapshot(self) -> dict[str, Any]:
        return self.stats.snapshot()

    async def run(
        self, request: Any, *, tenant: str = "", weight: int = 1, deadline: datetime | None = None, on_progress: StepCallback | None = None
    ) -> ExecutionResult:
        """Carry one order out. `on_step` also hears of step 0, when the work begins. Cancelling the caller cancels this order, and no
        other, at its next step.

        Raises what the engine said (PermanentError, TemporaryError), PermanentError("engine-crash") when the order kills its process
        again and again, TemporaryError when too much is in hand, EngineDead when no process can be had.
        """
        if self._closing.is_set():
            raise EngineCrashed("the executor is closing")
        if self.in_flight >= self.max_in_flight:
            raise TemporaryError(f"{self.max_in_flight} orders are in hand already: prefetch no more than that", code="engine-full")
        job = RequestState(request, tenant, weight, deadline, on_progress, asyncio.get_running_loop().create_future())
        self._queue.push(tenant, job)
        self._dispatch()
        try:
            finished = await job.future
        except asyncio.CancelledError:
            self._cancel(job)
            raise
        now = time.monotonic()
        started = job.started_at or now
        parcels = await asyncio.to_thread(read_outputs, finished.output_files)
        return ExecutionResult(finished.result, parcels, started - job.queued_at, now - started)

    def _cancel(self, state: RequestState) -> None:
        """Nobody waits any more. The place is free once the engine says so; a waiting job leaves at once."""
        state.caller_gone = True
        if self._queue.remove(state.tenant, state):
            return
        if state.future.done() and not state.future.cancelled() and not state.future.exception():
            delete_outputs(state.future.result().output_files)
        if self._process and state.request_id in self._running:
            self._process.send_control(CancelRequest(state.request_id))

    # -- to the process

    def _dispatch(self) -> None:
        """Hand over whoever is next, as long as there is room."""
        while self._engine_open.is_set() and (job := self._queue.peek()) and self._fits(job):
            self._queue.pop()
            if job.expired:
                resolve(job, PermanentError("deadline-exceeded", "the deadline passed while the order waited for the device"))
            elif not job.caller_gone:
                self._submit(job)

    def _fits(self, state: RequestState) -> bool:
        if not self._running:
            return True
        if state.alone or any(other.alone for other in self._running.values()):
            return False
        return sum(other.weight for other in self._running.values()) + state.weight <= self.capacity

    def _submit(self, state: RequestState) -> None:
        assert self._process is not None
        self._last_request_id += 1
        state.request_id = self._last_request_id
        if not self._running:
            self._process.expect_frame_within(self.step_seconds)
        self._running[state.request_id] = state
        self._process.send(Submit(state.request_id, state.request))

    # -- from the process

    def _on_tick_report(self, message: Any) -> None:
        assert isinstance(message, TickReport)
        self.stats.add_busy_seconds(message.seconds)
        for event in message.events:
            self._on_event(event)
        if self._process:
            self._process.expect_frame_within(self.step_seconds if self._running else None)
        self._dispatch()

    def _on_event(self, event: EngineEvent) -> None:
        if isinstance(event, EngineMetrics):
            self.stats.set_engine_metrics(event)
            return
        job = self._running.get(event.request_id)
        if job is None:
            return
        match event:
            case Started():
                self._mark_started(job)
            case Progressed() if job.on_progress and not job.caller_gone:
                job.on_progress(event)
            case Finished():
                self._remove(job)
                self._breaker.record_success()
                self.stats.finished += 1
                if not resolve(job, event):
                    delete_outputs(event.output_files)
            case Failed(kind="permanent", code=code, message=text):
                self._remove(job)
                resolve(job, PermanentError(code, text))
            case Failed(code=code, message=text):
                self._remove(job)
                resolve(job, TemporaryError(text, code=code))
            case Cancelled():
                self._remove(job)
                self.stats.cancelled += 1

    def _mark_started(self, state: RequestState) -> None:
        if state.started_at is None:
            state.started_at = time.monotonic()
            if state.on_progress and not state.caller_gone:
                state.on_progress(Progressed(state.request_id, 0, 0))
            self.stats.record_queue_seconds(state.started_at - state.queued_at)

    def _remove(self, state: RequestState) -> None:
        del self._running[state.request_id]

    # -- the life of the process

    async def supervise(self) -> None:
        """Keep a process alive until closed. One life after the other, with a wait between them."""
        while not self._closing.is_set():
            await self._wait_before_restart(self._breaker.restart_delay_seconds())
            death = await self._run_process()
            if self._closing.is_set():
                return
            log.error("engine.died", cause=death.cause, reason=death.message, orders=len(self._running))
            self._handle_exit(death)

    async def _wait_before_restart(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _run_process(self) -> ProcessExit:
        """One life of the process, from its start to its death."""
        opening = OpenEngine(self.spec, self.shm_dir, self.settings.memory_limit_bytes)
        try:
            self._process = lane = await ProcessHandle.spawn(opening, self._on_tick_report, load_seconds=self.settings.load_seconds)
        except OSError as error:
            return ProcessExit("open", f"no process could be started: {error}")
        if self._closing.is_set():
            lane.kill(ProcessExit("left", "the executor was closed meanwhile"))
        either: set[asyncio.Future[Any]] = {lane.ready, lane.exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if lane.ready.done() and not lane.ready.cancelled():
            self.info = lane.ready.result().info
            self._report_readiness(None)
            self._engine_open.set()
            log.info("engine.opened", **self.info)
            self._dispatch()
        death = await lane.exited
        self._engine_open.clear()
        self._process = None
        return death

    def _handle_exit(self, process_exit: ProcessExit) -> None:
        """Share out the blame, and have the suspects run again, each alone."""
        self.stats.record_exit(process_exit)
        self._breaker.record_failure()
        suspects = list(self._running.values())
        self._running.clear()
        for job in reversed(suspects):
            job.crashes.record_exit(process_exit, alone=len(suspects) == 1)
            self._retry_or_fail(job, process_exit)
        if self._breaker.open:
            self._fail_queued(process_exit)

    def _retry_or_fail(self, state: RequestState, process_exit: ProcessExit) -> None:
        error = state.crashes.error_for(process_exit)
        if state.caller_gone:
            return
        if error:
            resolve(state, error)
        else:
            state.alone = True
            self._queue.push(state.tenant, state, front=True)

    def _fail_queued(self, process_exit: ProcessExit) -> None:
        """The breaker is open: what is in hand goes back, for a worker whose engine lives."""
        self._report_readiness(f"the engine does not come up: {process_exit.message.strip().splitlines()[-1]}")
        for job in self._queue.clear():
            resolve(job, EngineCrashed(f"the model process died {self._breaker.failures} times in a row: {process_exit.message}"))

    def _report_readiness(self, reason: str | None) -> None:
        if reason != self.unready_reason:
            self.unready_reason = reason
            self._set_unready(reason)

    async def close(self) -> None:
        """Give back what is in hand and let the process go; it is killed when it does not leave in time."""
        self._closing.set()
        for job in [*self._queue.clear(), *self._running.values()]:
            resolve(job, EngineCrashed("the executor is closing"))
        lane = self._process
        if lane and not lane.exited.done():
            lane.send_control(StopProcess())
            await asyncio.wait({lane.exited}, timeout=self.settings.stop_seconds if lane.ready.done() else 0.1)
            lane.kill(ProcessExit("left", "it did not leave when asked"))
            await lane.exited


def resolve(state: RequestState, outcome: Finished | Exception) -> bool:
    """Answer whoever waits. False: nobody does."""
    if state.future.done():
        return False
    if isinstance(outcome, Finished):
        state.future.set_result(outcome)
    else:
        state.future.set_exception(outcome)
    return True


def read_outputs(files: tuple[Path, ...]) -> list[bytes]:
    """Read the parcels and remove them."""
    parcels = [file.read_bytes() for file in files]
    delete_outputs(files)
    return parcels


def delete_outputs(files: tuple[Path, ...]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


@asynccontextmanager
async def open_executor(
    spec: EngineSpec, settings: ExecutorSettings, *, max_in_flight: int, capacity: int, set_unready: SetUnready = lambda _: None
) -> AsyncIterator[Executor]:
    """An executor with its process, which starts at once; work may be given before it is ready."""
    spool = create_shm_dir()
    executor = Executor(spec, settings, max_in_flight=max_in_flight, capacity=capacity, shm_dir=spool, set_unready=set_unready)
    keeper = asyncio.create_task(executor.supervise())
    try:
        yield executor
    finally:
        await executor.close()
        await keeper
        shutil.rmtree(spool, ignore_errors=True)
