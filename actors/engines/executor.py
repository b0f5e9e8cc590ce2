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

from actors.engines.blame import Blame
from actors.engines.breaker import Breaker
from actors.engines.lane import Lane
from actors.engines.protocol import (
    Advanced,
    Cancel,
    Death,
    EngineSpec,
    Event,
    Failed,
    Finished,
    Gauges,
    Gone,
    Opening,
    Pulse,
    Started,
    Stop,
    Submit,
)
from actors.engines.settings import ExecutorSettings
from actors.engines.spool import open_spool
from actors.engines.stats import Stats
from actors.engines.turns import Turns
from bus.errors import EngineDead, PermanentError, TemporaryError

log = structlog.get_logger()

OnStep = Callable[[Advanced], None]
Unready = Callable[[str | None], None]

STEP_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """What came of one order: the engine's own result, the bytes of its parcels, and the seconds it waited and was at work."""

    result: Any
    parcels: list[bytes]
    queued_seconds: float
    compute_seconds: float


@dataclass(eq=False)
class Job:
    """One order in hand."""

    work: Any
    tenant: str
    weight: int
    deadline: datetime | None
    on_step: OnStep | None
    done: "asyncio.Future[Finished]"
    alone: bool = False
    abandoned: bool = False
    blame: Blame = field(default_factory=Blame)
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    ticket: int = 0

    @property
    def expired(self) -> bool:
        return self.deadline is not None and datetime.now(UTC) >= self.deadline


class Executor:
    """Give it work with `run`. `unready` is told why no work can be done, and None when it can be again."""

    def __init__(self, spec: EngineSpec, settings: ExecutorSettings, *, admit: int, capacity: int, spool: Path, unready: Unready) -> None:
        self.spec, self.settings, self.admit, self.capacity, self.spool = spec, settings, admit, capacity, spool
        self.reason: str | None = "the model process is starting"
        self.info: dict[str, Any] = {}
        self.stats = Stats()
        self._unready = unready
        self._breaker = Breaker(settings.failures_before_open, settings.first_wait_seconds, settings.longest_wait_seconds)
        self._turns: Turns[Job] = Turns()
        self._running: dict[int, Job] = {}
        self._lane: Lane | None = None
        self._open = asyncio.Event()
        self._closing = asyncio.Event()
        self._tickets = 0

    @property
    def healthy(self) -> bool:
        """False while starting and while the engine cannot come up; `reason` says which."""
        return self.reason is None

    @property
    def in_hand(self) -> int:
        """What somebody waits for. A cancelled order may still hold its place in the engine, until its next step."""
        return len(self._turns) + sum(not job.abandoned for job in self._running.values())

    @property
    def step_seconds(self) -> float:
        """As set, else as the engine thinks right for its device."""
        return self.settings.step_seconds or float(self.info.get("step_seconds", STEP_SECONDS))

    @property
    def process_id(self) -> int | None:
        return self._lane.process.pid if self._lane else None

    async def ready(self) -> None:
        """Wait until the engine is open."""
        await self._open.wait()

    async def away(self) -> str | None:
        """Why no work would be begun now."""
        return self.reason or (None if self._open.is_set() else "the model process died and is started again")

    def snapshot(self) -> dict[str, Any]:
        return self.stats.snapshot()

    async def run(
        self, work: Any, *, tenant: str = "", weight: int = 1, deadline: datetime | None = None, on_step: OnStep | None = None
    ) -> Outcome:
        """Carry one order out. `on_step` also hears of step 0, when the work begins. Cancelling the caller cancels this order, and no
        other, at its next step.

        Raises what the engine said (PermanentError, TemporaryError), PermanentError("engine-crash") when the order kills its process
        again and again, TemporaryError when too much is in hand, EngineDead when no process can be had.
        """
        if self._closing.is_set():
            raise EngineDead("the executor is closing")
        if self.in_hand >= self.admit:
            raise TemporaryError(f"{self.admit} orders are in hand already: prefetch no more than that", code="engine-full")
        job = Job(work, tenant, weight, deadline, on_step, asyncio.get_running_loop().create_future())
        self._turns.add(tenant, job)
        self._pump()
        try:
            finished = await job.done
        except asyncio.CancelledError:
            self._abandon(job)
            raise
        now = time.monotonic()
        started = job.started_at or now
        parcels = await asyncio.to_thread(collect, finished.parcels)
        return Outcome(finished.result, parcels, started - job.queued_at, now - started)

    def _abandon(self, job: Job) -> None:
        """Nobody waits any more. The place is free once the engine says so; a waiting job leaves at once."""
        job.abandoned = True
        if self._turns.drop(job.tenant, job):
            return
        if job.done.done() and not job.done.cancelled() and not job.done.exception():
            discard(job.done.result().parcels)
        if self._lane and job.ticket in self._running:
            self._lane.command(Cancel(job.ticket))

    # -- to the process

    def _pump(self) -> None:
        """Hand over whoever is next, as long as there is room."""
        while self._open.is_set() and (job := self._turns.peek()) and self._fits(job):
            self._turns.take()
            if job.expired:
                finish(job, PermanentError("deadline-exceeded", "the deadline passed while the order waited for the device"))
            elif not job.abandoned:
                self._hand_over(job)

    def _fits(self, job: Job) -> bool:
        if not self._running:
            return True
        if job.alone or any(other.alone for other in self._running.values()):
            return False
        return sum(other.weight for other in self._running.values()) + job.weight <= self.capacity

    def _hand_over(self, job: Job) -> None:
        assert self._lane is not None
        self._tickets += 1
        job.ticket = self._tickets
        if not self._running:
            self._lane.expect(self.step_seconds)
        self._running[job.ticket] = job
        self._lane.send(Submit(job.ticket, job.work))

    # -- from the process

    def _hear(self, message: Any) -> None:
        assert isinstance(message, Pulse)
        self.stats.busy(message.seconds)
        for event in message.events:
            self._note(event)
        if self._lane:
            self._lane.expect(self.step_seconds if self._running else None)
        self._pump()

    def _note(self, event: Event) -> None:
        if isinstance(event, Gauges):
            self.stats.measured(event)
            return
        job = self._running.get(event.ticket)
        if job is None:
            return
        match event:
            case Started():
                self._started(job)
            case Advanced() if job.on_step and not job.abandoned:
                job.on_step(event)
            case Finished():
                self._leave(job)
                self._breaker.worked()
                self.stats.finished += 1
                if not finish(job, event):
                    discard(event.parcels)
            case Failed(kind="permanent", code=code, message=text):
                self._leave(job)
                finish(job, PermanentError(code, text))
            case Failed(code=code, message=text):
                self._leave(job)
                finish(job, TemporaryError(text, code=code))
            case Gone():
                self._leave(job)
                self.stats.cancelled += 1

    def _started(self, job: Job) -> None:
        if job.started_at is None:
            job.started_at = time.monotonic()
            if job.on_step and not job.abandoned:
                job.on_step(Advanced(job.ticket, 0, 0))
            self.stats.waited(job.started_at - job.queued_at)

    def _leave(self, job: Job) -> None:
        del self._running[job.ticket]

    # -- the life of the process

    async def supervise(self) -> None:
        """Keep a process alive until closed. One life after the other, with a wait between them."""
        while not self._closing.is_set():
            await self._rest(self._breaker.wait_seconds())
            death = await self._live()
            if self._closing.is_set():
                return
            log.error("engine.died", cause=death.cause, reason=death.message, orders=len(self._running))
            self._mourn(death)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _live(self) -> Death:
        """One life of the process, from its start to its death."""
        opening = Opening(self.spec, self.spool, self.settings.memory_limit_bytes)
        try:
            self._lane = lane = await Lane.spawn(opening, self._hear, load_seconds=self.settings.load_seconds)
        except OSError as error:
            return Death("open", f"no process could be started: {error}")
        if self._closing.is_set():
            lane.kill(Death("left", "the executor was closed meanwhile"))
        either: set[asyncio.Future[Any]] = {lane.ready, lane.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if lane.ready.done() and not lane.ready.cancelled():
            self.info = lane.ready.result().info
            self._say(None)
            self._open.set()
            log.info("engine.opened", **self.info)
            self._pump()
        death = await lane.ended
        self._open.clear()
        self._lane = None
        return death

    def _mourn(self, death: Death) -> None:
        """Share out the blame, and have the suspects run again, each alone."""
        self.stats.died(death)
        self._breaker.failed()
        suspects = list(self._running.values())
        self._running.clear()
        for job in reversed(suspects):
            job.blame.died(death, alone=len(suspects) == 1)
            self._again_or_never(job, death)
        if self._breaker.open:
            self._give_up(death)

    def _again_or_never(self, job: Job, death: Death) -> None:
        error = job.blame.verdict(death)
        if job.abandoned:
            return
        if error:
            finish(job, error)
        else:
            job.alone = True
            self._turns.add(job.tenant, job, first=True)

    def _give_up(self, death: Death) -> None:
        """The breaker is open: what is in hand goes back, for a worker whose engine lives."""
        self._say(f"the engine does not come up: {death.message.strip().splitlines()[-1]}")
        for job in self._turns.clear():
            finish(job, EngineDead(f"the model process died {self._breaker.failures} times in a row: {death.message}"))

    def _say(self, reason: str | None) -> None:
        if reason != self.reason:
            self.reason = reason
            self._unready(reason)

    async def close(self) -> None:
        """Give back what is in hand and let the process go; it is killed when it does not leave in time."""
        self._closing.set()
        for job in [*self._turns.clear(), *self._running.values()]:
            finish(job, EngineDead("the executor is closing"))
        lane = self._lane
        if lane and not lane.ended.done():
            lane.command(Stop())
            await asyncio.wait({lane.ended}, timeout=self.settings.stop_seconds if lane.ready.done() else 0.1)
            lane.kill(Death("left", "it did not leave when asked"))
            await lane.ended


def finish(job: Job, outcome: Finished | Exception) -> bool:
    """Answer whoever waits. False: nobody does."""
    if job.done.done():
        return False
    if isinstance(outcome, Finished):
        job.done.set_result(outcome)
    else:
        job.done.set_exception(outcome)
    return True


def collect(files: tuple[Path, ...]) -> list[bytes]:
    """Read the parcels and remove them."""
    parcels = [file.read_bytes() for file in files]
    discard(files)
    return parcels


def discard(files: tuple[Path, ...]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


@asynccontextmanager
async def open_executor(
    spec: EngineSpec, settings: ExecutorSettings, *, admit: int, capacity: int, unready: Unready = lambda _: None
) -> AsyncIterator[Executor]:
    """An executor with its process, which starts at once; work may be given before it is ready."""
    spool = open_spool()
    executor = Executor(spec, settings, admit=admit, capacity=capacity, spool=spool, unready=unready)
    keeper = asyncio.create_task(executor.supervise())
    try:
        yield executor
    finally:
        await executor.close()
        await keeper
        shutil.rmtree(spool, ignore_errors=True)
