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

from actors.engines.framing import BlockingChannel
from actors.engines.protocol import (
    Beat,
    Broken,
    Cancel,
    Engine,
    Event,
    Failed,
    Gone,
    Lifeline,
    MemoryExhausted,
    Opening,
    Pulse,
    Ready,
    Stop,
)
from bus.errors import PermanentError, TemporaryError
from bus.logs import open_logs

PR_SET_PDEATHSIG = 1
NICENESS = 5
"""The model may use every core, but the loop that keeps the connections alive comes first."""


def main(data_descriptor: int, control_descriptor: int) -> None:
    guard()
    open_logs()
    data = BlockingChannel(data_descriptor)
    orders = Orders(BlockingChannel(control_descriptor))
    opening: Opening = data.receive()
    if opening.memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (opening.memory_limit_bytes, opening.memory_limit_bytes))
    try:
        engine = open_engine(opening, data, orders)
    except Exception as error:
        leave(data, Broken("open", describe(error)))
    try:
        Loop(engine, data, orders).run()
    except (MemoryError, MemoryExhausted) as error:
        leave(data, Broken("memory", describe(error)))
    except Exception as error:
        leave(data, Broken("error", describe(error)))
    os._exit(0)


def guard() -> None:
    """A crash leaves its stack on standard error; a signal meant for the parent does not end us; the parent's end does."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def open_engine(opening: Opening, data: BlockingChannel, orders: "Orders") -> Engine:
    def beat(note: str, limit_seconds: float, share: float | None = None) -> None:
        data.send(Beat(note, limit_seconds, share))

    lifeline = Lifeline(beat, orders.wake, opening.spool)
    module, _, name = opening.spec.factory.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(opening.spec.options, lifeline)
    engine.self_test()
    data.send(Ready(engine.info))
    return engine


def describe(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-4000:]


def leave(data: BlockingChannel, word: Broken) -> None:
    """Say why and go, without Python's own farewell, which may hang on a lost device."""
    try:
        data.send(word)
    finally:
        os._exit(70)


class Orders:
    """The control pipe, read by a thread of its own, so that a cancel is known while a step runs."""

    def __init__(self, control: BlockingChannel) -> None:
        self.cancelled: deque[int] = deque()
        self.stop = False
        self._control = control
        self.bell, self._rope = os.pipe()
        os.set_blocking(self._rope, False)
        os.set_blocking(self.bell, False)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                message = self._control.receive()
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(message, Cancel):
                self.cancelled.append(message.ticket)
            self.stop = self.stop or isinstance(message, Stop)
            self.wake()

    def wake(self) -> None:
        try:
            os.write(self._rope, b"!")
        except BlockingIOError:
            return

    def hush(self) -> None:
        try:
            while os.read(self.bell, 4096):
                pass
        except BlockingIOError:
            return


class Loop:
    """Wait, take in, drop, tick, tell."""

    def __init__(self, engine: Engine, data: BlockingChannel, orders: Orders) -> None:
        self.engine, self.data, self.orders = engine, data, orders
        self.newest = 0
        self.early: set[int] = set()
        self.told: list[Event] = []

    def run(self) -> None:
        while not self.orders.stop:
            self._take_in(self.engine.idle_seconds())
            self._drop()
            if self.orders.stop or (self.engine.idle_seconds() != 0 and not self.told):
                continue
            self._tick()
        self.engine.close()

    def _take_in(self, patience: float | None) -> None:
        data = self.data.fileno()
        ready, _, _ = select.select([data, self.orders.bell], [], [], patience)
        self.orders.hush()
        while data in ready:
            self._submit(self.data.receive())
            ready, _, _ = select.select([data], [], [], 0)

    def _submit(self, message: Any) -> None:
        self.newest = message.ticket
        if message.ticket in self.early:
            self.early.discard(message.ticket)
            self.told.append(Gone(message.ticket))
            return
        try:
            self.engine.submit(message.ticket, message.work)
        except PermanentError as error:
            self.told.append(Failed(message.ticket, "permanent", error.code, str(error)))
        except TemporaryError as error:
            self.told.append(Failed(message.ticket, "temporary", error.code, str(error)))
        except (MemoryError, MemoryExhausted):
            raise
        except Exception as error:
            self.told.append(Failed(message.ticket, "temporary", "engine-refused", describe(error)))

    def _drop(self) -> None:
        """A cancel may come before its order, since it has a pipe of its own; tickets only grow, so the rest came too late."""
        while self.orders.cancelled:
            ticket = self.orders.cancelled.popleft()
            if self.engine.cancel(ticket):
                self.told.append(Gone(ticket))
            elif ticket > self.newest:
                self.early.add(ticket)

    def _tick(self) -> None:
        started = time.perf_counter()
        if self.engine.idle_seconds() == 0:
            self.told.extend(self.engine.tick())
        events, self.told = tuple(self.told), []
        self.data.send(Pulse(events, time.perf_counter() - started))
