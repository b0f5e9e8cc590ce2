"""The bounded executor: runs requests in a model process, which may hang, crash or be killed without a request being lost.

Rule 1: the number of admitted requests is bounded; the rest waits in the broker. Rule 2: the event loop only awaits. Rule 3: requests of a
process that exited run again, each alone; one whose process exits again while it is alone fails. Rule 4: EngineCrashed is raised only when
no process can serve the request.
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

from actors.engines.process.charges import ChargedRequests, RequestCharge
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
from actors.engines.process.shm_dir import create_shm_dir, delete_outputs, read_outputs
from actors.engines.process.stats import ExecutorStats
from actors.engines.settings import ExecutorSettings
from actors.engines.shared_resource import SetUnready
from bus.errors import EngineCrashed, PermanentError, TemporaryError

log = structlog.get_logger()

StepCallback = Callable[[Progressed], None]

DEFAULT_STEP_SECONDS = 60.0


@dataclass(frozen=True)
class ExecutionResult:
    """The engine's result of one request, the contents of its output files, and the seconds it was queued and running.

    `device_seconds`: the part of the device's busy time that was for it, of all its attempts.
    """

    result: Any
    outputs: list[bytes]
    queued_seconds: float
    compute_seconds: float
    device_seconds: float = 0.0


@dataclass(eq=False)
class RequestState:
    """One admitted request. Moments are of `time.monotonic`; `caller_gone`: nobody awaits `future` any more."""

    request: Any
    tenant: str
    weight: int
    deadline: datetime | None
    on_progress: StepCallback | None
    future: "asyncio.Future[Finished]"
    alone: bool = False
    caller_gone: bool = False
    crashes: CrashAttribution = field(default_factory=CrashAttribution)
    charge: RequestCharge = field(default_factory=RequestCharge)
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    request_id: int = 0

    @property
    def expired(self) -> bool:
        return self.deadline is not None and datetime.now(UTC) >= self.deadline


class Executor:
    """Runs requests with `run`. `set_unready` is called with the reason when none can be served, and with None when they can again.

    `lazy`: the first process is started for the first request, which waits for it; until then the executor counts as available.
    """

    def __init__(
        self,
        spec: EngineSpec,
        settings: ExecutorSettings,
        *,
        max_in_flight: int,
        capacity: int,
        shm_dir: Path,
        set_unready: SetUnready,
        lazy: bool = False,
    ) -> None:
        self.spec, self.settings, self.max_in_flight, self.capacity, self.shm_dir = spec, settings, max_in_flight, capacity, shm_dir
        self.unready_reason: str | None = "the model process is starting"
        self.info: dict[str, Any] = {}
        self.stats = ExecutorStats()
        self._set_unready = set_unready
        self._breaker = CircuitBreaker(settings.failures_before_open, settings.first_wait_seconds, settings.longest_wait_seconds)
        self._queue: FairQueue[RequestState] = FairQueue()
        self._running: dict[int, RequestState] = {}
        self._charged = ChargedRequests()
        self._process: ProcessHandle | None = None
        self._engine_open = asyncio.Event()
        self._closing = asyncio.Event()
        self._wanted = asyncio.Event()
        if not lazy:
            self._wanted.set()
        self._last_request_id = 0

    @property
    def is_wanted(self) -> bool:
        """Whether a process was started or is being started. A lazy executor has none before its first request."""
        return self._wanted.is_set()

    @property
    def healthy(self) -> bool:
        """False while the engine starts and while it cannot be started; `unready_reason` says which."""
        return self.unready_reason is None

    @property
    def in_flight(self) -> int:
        """Requests that are awaited. A cancelled one is not, though it may hold its place in the engine until the next step."""
        return len(self._queue) + sum(not state.caller_gone for state in self._running.values())

    @property
    def running(self) -> int:
        """Requests in the engine whose callers still wait."""
        return sum(not state.caller_gone for state in self._running.values())

    @property
    def step_seconds(self) -> float:
        """The longest time without a heartbeat while a request runs: as set, else the engine's value for its device."""
        return self.settings.step_seconds or float(self.info.get("step_seconds", DEFAULT_STEP_SECONDS))

    @property
    def process_id(self) -> int | None:
        return self._process.process.pid if self._process else None

    async def ready(self) -> None:
        """Wait until the engine is open."""
        await self._engine_open.wait()

    async def unavailable_reason(self) -> str | None:
        """Why no request would be started now; None when one would."""
        if not self.is_wanted:
            return None
        return self.unready_reason or (None if self._engine_open.is_set() else "the model process exited and is being restarted")

    def snapshot(self) -> dict[str, Any]:
        return self.stats.snapshot()

    async def run(
        self, request: Any, *, tenant: str = "", weight: int = 1, deadline: datetime | None = None, on_progress: StepCallback | None = None
    ) -> ExecutionResult:
        """Run one request. `on_progress` is also called with step 0, when it starts. Cancelling the caller cancels this request, and no
        other, at its next step.

        Raises the engine's PermanentError or TemporaryError, PermanentError("engine-crash") when the request repeatedly ends its process,
        PermanentError("deadline-exceeded"), TemporaryError("engine-full"), EngineCrashed when no process can be started.
        """
        if self._closing.is_set():
            raise EngineCrashed("the executor is closing")
        if self.in_flight >= self.max_in_flight:
            raise TemporaryError(f"{self.max_in_flight} requests are already in flight: set the prefetch no higher", code="engine-full")
        state = RequestState(request, tenant, weight, deadline, on_progress, asyncio.get_running_loop().create_future())
        self._queue.push(tenant, state)
        self._wanted.set()
        self._dispatch()
        try:
            finished = await state.future
        except asyncio.CancelledError:
            self._cancel(state)
            raise
        now = time.monotonic()
        started = state.started_at or now
        outputs = await asyncio.to_thread(read_outputs, finished.output_files)
        return ExecutionResult(finished.result, outputs, started - state.queued_at, now - started, state.charge.device_seconds)

    def _cancel(self, state: RequestState) -> None:
        """The caller is gone. A queued request leaves at once; a running one when the engine confirms."""
        state.caller_gone = True
        if self._queue.remove(state.tenant, state):
            return
        if state.future.done() and not state.future.cancelled() and not state.future.exception():
            delete_outputs(state.future.result().output_files)
        if self._process and state.request_id in self._running:
            self._process.send_control(CancelRequest(state.request_id))

    # -- requests to the process

    def _dispatch(self) -> None:
        """Submit queued requests as long as the engine has capacity."""
        while self._engine_open.is_set() and (state := self._queue.peek()) and self._fits(state):
            self._queue.pop()
            if state.expired:
                resolve(state, PermanentError("deadline-exceeded", "the deadline passed while the request waited for the device"))
            elif not state.caller_gone:
                self._submit(state)

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
        self._charged.submit(state.request_id, state.charge)
        self._running[state.request_id] = state
        self._process.send(Submit(state.request_id, state.request))

    # -- events from the process

    def _on_tick_report(self, message: Any) -> None:
        assert isinstance(message, TickReport)
        self.stats.add_busy_seconds(message.busy_seconds)
        self._charged.report(message.device_seconds)
        for event in message.events:
            self._on_event(event)
        if self._process:
            self._process.expect_frame_within(self.step_seconds if self._running else None)
        self._dispatch()

    def _on_event(self, event: EngineEvent) -> None:
        if isinstance(event, EngineMetrics):
            self.stats.set_engine_metrics(event)
            return
        state = self._running.get(event.request_id)
        if state is None:
            return
        match event:
            case Started():
                self._mark_started(state)
            case Progressed() if state.on_progress and not state.caller_gone:
                state.on_progress(event)
            case Finished():
                self._remove(state)
                self._breaker.record_success()
                self.stats.finished += 1
                if not resolve(state, event):
                    delete_outputs(event.output_files)
            case Failed(kind="permanent", code=code, message=text, error=error):
                self._remove(state)
                resolve(state, error or PermanentError(code, text))
            case Failed(code=code, message=text):
                self._remove(state)
                resolve(state, TemporaryError(text, code=code))
            case Cancelled():
                self._remove(state)
                self.stats.cancelled += 1

    def _mark_started(self, state: RequestState) -> None:
        if state.started_at is None:
            state.started_at = time.monotonic()
            if state.on_progress and not state.caller_gone:
                state.on_progress(Progressed(state.request_id, 0, 0))
            self.stats.record_queue_seconds(state.started_at - state.queued_at)

    def _remove(self, state: RequestState) -> None:
        del self._running[state.request_id]
        self._charged.end(state.request_id)

    # -- lifecycle of the process

    async def supervise(self) -> None:
        """Run one process after another until closed, with the breaker's delay between them."""
        await self._wanted.wait()
        while not self._closing.is_set():
            await self._wait_before_restart(self._breaker.restart_delay_seconds())
            process_exit = await self._run_process()
            if self._closing.is_set():
                return
            log.error("engine.died", cause=process_exit.cause, reason=process_exit.message, requests=len(self._running))
            self._handle_exit(process_exit)

    async def _wait_before_restart(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _run_process(self) -> ProcessExit:
        """One process from its start to its exit."""
        command = OpenEngine(self.spec, self.shm_dir, self.settings.memory_limit_bytes, self._breaker.after_crash)
        try:
            self._process = process = await ProcessHandle.spawn(command, self._on_tick_report, load_seconds=self.settings.load_seconds)
        except OSError as error:
            return ProcessExit("open", f"no process could be started: {error}")
        if self._closing.is_set():
            process.kill(ProcessExit("left", "the executor was closed meanwhile"))
        either: set[asyncio.Future[Any]] = {process.ready, process.exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if process.ready.done() and not process.ready.cancelled():
            self.info = process.ready.result().info
            self._report_readiness(None)
            self._engine_open.set()
            log.info("engine.opened", **self.info)
            self._dispatch()
        process_exit = await process.exited
        self._engine_open.clear()
        self._process = None
        return process_exit

    def _handle_exit(self, process_exit: ProcessExit) -> None:
        """Record the exit with every request that was running, and queue those again that have not failed, each to run alone."""
        self.stats.record_exit(process_exit)
        self.stats.add_busy_seconds(self._charged.end_process())
        interrupted = list(self._running.values())
        self._breaker.record_exit(process_exit, had_requests=bool(interrupted))
        self._running.clear()
        for state in reversed(interrupted):
            state.crashes.record_exit(process_exit, alone=len(interrupted) == 1)
            self._retry_or_fail(state, process_exit)
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
        """The breaker is open: queued requests go back to the broker, for a worker whose engine runs."""
        self._report_readiness(f"the engine does not start: {process_exit.message.strip().splitlines()[-1]}")
        for state in self._queue.clear():
            resolve(state, EngineCrashed(f"{self._breaker.failures} failures of the engine, no request between: {process_exit.message}"))

    def _report_readiness(self, reason: str | None) -> None:
        if reason != self.unready_reason:
            self.unready_reason = reason
            self._set_unready(reason)

    async def close(self) -> None:
        """Fail every request with EngineCrashed and stop the process; it is killed when it does not exit in time."""
        self._closing.set()
        self._wanted.set()
        for state in [*self._queue.clear(), *self._running.values()]:
            resolve(state, EngineCrashed("the executor is closing"))
        process = self._process
        if process and not process.exited.done():
            process.send_control(StopProcess())
            await asyncio.wait({process.exited}, timeout=self.settings.stop_seconds if process.ready.done() else 0.1)
            process.kill(ProcessExit("left", "it did not exit when requested to stop"))
            await process.exited


def resolve(state: RequestState, outcome: Finished | Exception) -> bool:
    """Set the result or the error that the caller awaits. False: it has one already, or the caller is gone."""
    if state.future.done():
        return False
    if isinstance(outcome, Finished):
        state.future.set_result(outcome)
    else:
        state.future.set_exception(outcome)
    return True


@asynccontextmanager
async def open_executor(
    spec: EngineSpec,
    settings: ExecutorSettings,
    *,
    max_in_flight: int,
    capacity: int,
    set_unready: SetUnready = lambda _: None,
    lazy: bool = False,
) -> AsyncIterator[Executor]:
    """An executor with its process, which starts at once, or for the first request; requests may be run before it is ready."""
    shm_dir = create_shm_dir()
    executor = Executor(spec, settings, max_in_flight=max_in_flight, capacity=capacity, shm_dir=shm_dir, set_unready=set_unready, lazy=lazy)
    supervisor = asyncio.create_task(executor.supervise())
    try:
        yield executor
    finally:
        await executor.close()
        await supervisor
        shutil.rmtree(shm_dir, ignore_errors=True)
