"""One spawned process as its parent sees it: frames out, frames in, a watch on its silence, and how it ended. Purely asynchronous."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import structlog

from actors.engines.process.framing import FrameProtocol, encode_frame
from actors.engines.process.protocol import EngineReady, FatalError, LoadProgress, OpenEngine, ProcessExit

log = structlog.get_logger()

# A plain start of Python: no fork (CUDA does not survive one), and no second run of the parent's main module, as multiprocessing does.
BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from actors.engines.process.child import main; main(*map(int, sys.argv[2:]))"
)


class ProcessHandle:
    """`ready` is done when the engine is open; `ended` when the process is no more, with its death."""

    def __init__(self, on_message: Callable[[Any], None]) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineReady] = loop.create_future()
        self.exited: asyncio.Future[ProcessExit] = loop.create_future()
        self.closing = False
        self._on_message = on_message
        self._fatal_error: FatalError | None = None
        self._kill_reason: ProcessExit | None = None
        self._silence_timer: asyncio.TimerHandle | None = None

    @classmethod
    async def spawn(cls, command: OpenEngine, on_message: Callable[[Any], None], *, load_seconds: float) -> "ProcessHandle":
        """Start the process and have it open its engine; it is killed when that is silent for `load_seconds`."""
        lane = cls(on_message)
        ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
        try:
            descriptors = [end.fileno() for end in theirs]
            lane.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", BOOTSTRAP, json.dumps(sys.path), *map(str, descriptors),
                stdin=asyncio.subprocess.DEVNULL, stdout=2, pass_fds=descriptors,
            )  # fmt: skip
        finally:
            for end in theirs:
                end.close()
        await lane._connect(*ours)
        lane.expect_frame_within(load_seconds)
        lane.send(command)
        return lane

    process: asyncio.subprocess.Process

    async def _connect(self, data: socket.socket, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._data, self._frames = await loop.create_unix_connection(lambda: FrameProtocol(self._on_frame), sock=data)
        self._control, _ = await loop.create_unix_connection(lambda: FrameProtocol(lambda _: None), sock=control)
        self._exit_task = asyncio.create_task(self._wait_for_exit())

    def send(self, message: Any) -> None:
        self._data.write(encode_frame(message))

    def send_control(self, message: Any) -> None:
        """Over the control pipe, past whatever waits on the data pipe."""
        self._control.write(encode_frame(message))

    def expect_frame_within(self, seconds: float | None) -> None:
        """A frame must come within so many seconds, or the process is killed. None: it may be silent, it has nothing to do."""
        if self._silence_timer:
            self._silence_timer.cancel()
        self._silence_timer = asyncio.get_running_loop().call_later(seconds, self._on_silence, seconds) if seconds else None

    def _on_silence(self, seconds: float) -> None:
        self.kill(ProcessExit("hang", f"the model process gave no sign for {seconds:g} s and was killed"))

    def kill(self, reason: ProcessExit) -> None:
        self._kill_reason = self._kill_reason or reason
        if self.process.returncode is None:
            self.process.kill()

    def _on_frame(self, message: Any) -> None:
        match message:
            case EngineReady():
                self.expect_frame_within(None)
                if not self.ready.done():
                    self.ready.set_result(message)
            case LoadProgress(activity=note, timeout_seconds=limit, fraction=share):
                log.info("engine.busy", note=note, share=share)
                self.expect_frame_within(limit)
            case FatalError():
                self._fatal_error = message
            case _:
                self._on_message(message)

    async def _wait_for_exit(self) -> None:
        """The pipe ends or the process ends, whichever is seen first; then what it still said is read."""
        leaving: asyncio.Future[Any] = asyncio.ensure_future(self.process.wait())
        ends: set[asyncio.Future[Any]] = {leaving, self._frames.closed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait({leaving}, timeout=2)
        if not done:
            self.kill(ProcessExit("crash", "the model process closed its pipe and stayed"))
        code = await leaving
        await asyncio.wait({self._frames.closed}, timeout=2)
        self.expect_frame_within(None)
        self._data.close()
        self._control.close()
        self.exited.set_result(self._kill_reason or classify_exit(code, self._fatal_error))
        if not self.ready.done():
            self.ready.cancel()


def classify_exit(code: int, fatal_error: FatalError | None) -> ProcessExit:
    """What an exit status says. A negative one is a signal."""
    if fatal_error:
        return ProcessExit(fatal_error.cause, fatal_error.message)
    if code == -signal.SIGKILL:
        return ProcessExit("killed", "the model process was killed from outside, or by the kernel for want of memory")
    if code < 0:
        return ProcessExit("crash", f"the model process crashed with {signal.Signals(-code).name}")
    return ProcessExit("left" if code == 0 else "crash", f"the model process left with status {code}")
