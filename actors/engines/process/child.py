"""The process that owns a device: opens the engine, takes work from the data pipe, obeys the control pipe, ticks, and tells.

It ignores SIGINT and SIGTERM, so that its parent drains it, and it dies when its parent dies.
"""

import ctypes
import faulthandler
import importlib
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections import deque
from typing import Any

from actors.engines.process.framing import BlockingChannel
from actors.engines.process.protocol import (
    Cancelled,
    CancelRequest,
    Engine,
    EngineEvent,
    EngineHost,
    EngineReady,
    Failed,
    FatalError,
    LoadProgress,
    MemoryExhausted,
    OpenEngine,
    StopProcess,
    TickReport,
)
from bus.errors import PermanentError, TemporaryError
from bus.observability.logs import configure_logging

PR_SET_PDEATHSIG = 1
NICENESS = 5
"""The model may use every core, but the loop that keeps the connections alive comes first."""


def main(data_descriptor: int, control_descriptor: int) -> None:
    configure_process()
    configure_logging()
    data = BlockingChannel(data_descriptor)
    orders = ControlReader(BlockingChannel(control_descriptor))
    opening: OpenEngine = data.receive()
    if opening.memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (opening.memory_limit_bytes, opening.memory_limit_bytes))
    try:
        engine = open_engine(opening, data, orders)
    except Exception as error:
        exit_with_error(data, FatalError("open", format_traceback(error)))
    try:
        EngineLoop(engine, data, orders).run()
    except (MemoryError, MemoryExhausted) as error:
        exit_with_error(data, FatalError("memory", format_traceback(error)))
    except Exception as error:
        exit_with_error(data, FatalError("error", format_traceback(error)))
    os._exit(0)


def configure_process() -> None:
    """A crash leaves its stack on standard error; a signal meant for the parent does not end us; the parent's end does."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def open_engine(command: OpenEngine, data: BlockingChannel, control: "ControlReader") -> Engine:
    def beat(note: str, limit_seconds: float, share: float | None = None) -> None:
        data.send(LoadProgress(note, limit_seconds, share))

    lifeline = EngineHost(beat, control.wake, command.shm_dir)
    module, _, name = command.spec.factory_path.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(command.spec.options, lifeline)
    engine.self_test()
    data.send(EngineReady(engine.info))
    return engine


def format_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-4000:]


def exit_with_error(data: BlockingChannel, error: FatalError) -> None:
    """Say why and go, without Python's own farewell, which may hang on a lost device."""
    try:
        data.send(error)
    finally:
        os._exit(70)


class ControlReader:
    """The control pipe, read by a thread of its own, so that a cancel is known while a step runs."""

    def __init__(self, control: BlockingChannel) -> None:
        self.cancelled_ids: deque[int] = deque()
        self.stopping = False
        self._channel = control
        self.wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        os.set_blocking(self.wake_reader, False)
        threading.Thread(target=self._read_loop, daemon=True).start()

    def _read_loop(self) -> None:
        while True:
            try:
                message = self._channel.receive()
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(message, CancelRequest):
                self.cancelled_ids.append(message.request_id)
            self.stopping = self.stopping or isinstance(message, StopProcess)
            self.wake()

    def wake(self) -> None:
        try:
            os.write(self._wake_writer, b"!")
        except BlockingIOError:
            return

    def drain(self) -> None:
        try:
            while os.read(self.wake_reader, 4096):
                pass
        except BlockingIOError:
            return


class EngineLoop:
    """Wait, take in, drop, tick, tell."""

    def __init__(self, engine: Engine, data: BlockingChannel, control: ControlReader) -> None:
        self.engine, self.data, self.control = engine, data, control
        self.last_request_id = 0
        self.early_cancels: set[int] = set()
        self.pending_events: list[EngineEvent] = []

    def run(self) -> None:
        while not self.control.stopping:
            self._receive_requests(self.engine.idle_seconds())
            self._apply_cancels()
            if self.control.stopping or (self.engine.idle_seconds() != 0 and not self.pending_events):
                continue
            self._tick()
        self.engine.close()

    def _receive_requests(self, timeout_seconds: float | None) -> None:
        data = self.data.fileno()
        ready, _, _ = select.select([data, self.control.wake_reader], [], [], timeout_seconds)
        self.control.drain()
        while data in ready:
            self._submit(self.data.receive())
            ready, _, _ = select.select([data], [], [], 0)

    def _submit(self, message: Any) -> None:
        self.last_request_id = message.ticket
        if message.ticket in self.early_cancels:
            self.early_cancels.discard(message.ticket)
            self.pending_events.append(Cancelled(message.ticket))
            return
        try:
            self.engine.submit(message.ticket, message.work)
        except PermanentError as error:
            self.pending_events.append(Failed(message.ticket, "permanent", error.code, str(error)))
        except TemporaryError as error:
            self.pending_events.append(Failed(message.ticket, "temporary", error.code, str(error)))
        except (MemoryError, MemoryExhausted):
            raise
        except Exception as error:
            self.pending_events.append(Failed(message.ticket, "temporary", "engine-refused", format_traceback(error)))

    def _apply_cancels(self) -> None:
        """A cancel may come before its order, since it has a pipe of its own; tickets only grow, so the rest came too late."""
        while self.control.cancelled_ids:
            ticket = self.control.cancelled_ids.popleft()
            if self.engine.cancel(ticket):
                self.pending_events.append(Cancelled(ticket))
            elif ticket > self.last_request_id:
                self.early_cancels.add(ticket)

    def _tick(self) -> None:
        started = time.perf_counter()
        if self.engine.idle_seconds() == 0:
            self.pending_events.extend(self.engine.tick())
        events, self.pending_events = tuple(self.pending_events), []
        self.data.send(TickReport(events, time.perf_counter() - started))
