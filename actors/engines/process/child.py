"""The model process, which owns a device: opens the engine, reads requests and cancels from two pipes, ticks and reports the events.

It ignores SIGINT and SIGTERM, so that its parent can drain it, and exits when its parent exits.
"""

import ctypes
import faulthandler
import gc
import importlib
import os
import resource
import select
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from actors.engines.process.failures import exit_cause, is_device_failure
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
    OpenEngine,
    StopProcess,
    Submit,
    TickReport,
)
from bus.errors import PermanentError, TemporaryError
from bus.masking import mask_text
from bus.observability.logs import configure_logging

log = structlog.get_logger()
PR_SET_PDEATHSIG = 1
OPENING_THRESHOLD = 200_000
NICENESS = 5
"""The model may use every core, but the event loop that keeps the connections alive has priority."""


def main(data_descriptor: int, control_descriptor: int) -> None:
    configure_process()
    configure_logging()
    data = BlockingChannel(data_descriptor)
    control = ControlReader(BlockingChannel(control_descriptor))
    command: OpenEngine = data.receive()
    if command.memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (command.memory_limit_bytes, command.memory_limit_bytes))
    try:
        engine = open_engine(command, data, control)
    except Exception as error:
        exit_with_error(data, FatalError("open", format_traceback(error)))
    try:
        EngineLoop(engine, data, control).run()
    except Exception as error:
        cause = exit_cause(error)
        if cause == "memory":
            traceback.clear_frames(error.__traceback__)  # they hold the memory that the message needs
        exit_with_error(data, FatalError(cause, format_traceback(error)))
    os._exit(0)


def configure_process() -> None:
    """Print the stack on a crash, ignore signals that are meant for the parent, and exit with the parent."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def open_engine(command: OpenEngine, data: BlockingChannel, control: "ControlReader") -> Engine:
    def report_load_progress(activity: str, timeout_seconds: float, fraction: float | None = None) -> None:
        data.send(LoadProgress(activity, timeout_seconds, fraction))

    host = EngineHost(report_load_progress, control.wake, command.shm_dir, command.after_crash)
    module, _, name = command.spec.factory_path.partition(":")
    with rare_collection():
        engine: Engine = getattr(importlib.import_module(module), name)(command.spec.options, host)
    engine.self_test()
    engine.device_time.take()  # the test is nobody's request
    data.send(EngineReady(engine.info))
    return engine


@contextmanager
def rare_collection() -> Iterator[None]:
    """Inside the block garbage is looked for after so many new objects: the imports make a million that stay, and looking for garbage among
    them took a quarter of the time that an engine needs to open.
    """
    usual = gc.get_threshold()
    gc.set_threshold(OPENING_THRESHOLD, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def format_traceback(error: BaseException) -> str:
    return mask_text("".join(traceback.format_exception(error)))[-4000:]


def exit_with_error(data: BlockingChannel, error: FatalError) -> None:
    """Send the error and exit without Python's own shutdown, which may hang on a lost device."""
    try:
        data.send(error)
    finally:
        os._exit(70)


class ControlReader:
    """Reads the control pipe in a thread, so that a cancel arrives while a step runs. `wake_reader`: readable after `wake`."""

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
    """Receives requests, applies cancels, ticks the engine and reports its events."""

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

    def _submit(self, message: Submit) -> None:
        request_id = self.last_request_id = message.request_id
        if request_id in self.early_cancels:
            self.early_cancels.discard(request_id)
            self.pending_events.append(Cancelled(request_id))
            return
        try:
            with self.engine.device_time.work_equally([request_id]):
                self.engine.submit(request_id, message.request)
        except PermanentError as error:
            self.pending_events.append(Failed(request_id, "permanent", error.code, str(error), error))
        except TemporaryError as error:
            self.pending_events.append(Failed(request_id, "temporary", error.code, str(error)))
        except Exception as error:
            if is_device_failure(error):
                raise
            log.error("engine.request_failed", request_id=request_id, traceback=format_traceback(error))
            cause = f"the engine cannot read the request ({type(error).__name__}); its log holds the details"
            self.pending_events.append(Failed(request_id, "temporary", "engine-refused", cause))

    def _apply_cancels(self) -> None:
        """A cancel may arrive before its request, which comes on the other pipe. Ids only grow: one that is not later came too late."""
        while self.control.cancelled_ids:
            request_id = self.control.cancelled_ids.popleft()
            if self.engine.cancel(request_id):
                self.pending_events.append(Cancelled(request_id))
            elif request_id > self.last_request_id:
                self.early_cancels.add(request_id)

    def _tick(self) -> None:
        if self.engine.idle_seconds() == 0:
            self.pending_events.extend(self.engine.tick())
        events, self.pending_events = tuple(self.pending_events), []
        self.data.send(TickReport(events, *self.engine.device_time.take()))
