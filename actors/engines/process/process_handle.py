"""The parent's handle of a model process: sends and receives frames, kills it when none comes in time, reports its exit. Asynchronous."""

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

# A new Python process: no fork (CUDA does not survive one), and no second run of the parent's main module, as with multiprocessing.
BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from actors.engines.process.child import main; main(*map(int, sys.argv[2:]))"
)


class ProcessHandle:
    """`ready` is done when the engine is open, `exited` when the process has exited."""

    process: asyncio.subprocess.Process

    def __init__(self, on_message: Callable[[Any], None]) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineReady] = loop.create_future()
        self.exited: asyncio.Future[ProcessExit] = loop.create_future()
        self._on_message = on_message
        self._fatal_error: FatalError | None = None
        self._kill_reason: ProcessExit | None = None
        self._silence_timer: asyncio.TimerHandle | None = None

    @classmethod
    async def spawn(cls, command: OpenEngine, on_message: Callable[[Any], None], *, load_seconds: float) -> "ProcessHandle":
        """Start the process and have it open its engine; it is killed when it sends nothing for `load_seconds` meanwhile."""
        handle = cls(on_message)
        parent_ends, child_ends = zip(socket.socketpair(), socket.socketpair(), strict=True)
        try:
            descriptors = [end.fileno() for end in child_ends]
            handle.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", BOOTSTRAP, json.dumps(sys.path), *map(str, descriptors),
                stdin=asyncio.subprocess.DEVNULL, stdout=2, pass_fds=descriptors,
            )  # fmt: skip
        finally:
            for end in child_ends:
                end.close()
        await handle._connect(*parent_ends)
        handle.expect_frame_within(load_seconds)
        handle.send(command)
        return handle

    async def _connect(self, data: socket.socket, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._data, self._frames = await loop.create_unix_connection(lambda: FrameProtocol(self._on_frame), sock=data)
        self._control, _ = await loop.create_unix_connection(lambda: FrameProtocol(lambda _: None), sock=control)
        self._exit_task = asyncio.create_task(self._wait_for_exit())

    def send(self, message: Any) -> None:
        self._data.write(encode_frame(message))

    def send_control(self, message: Any) -> None:
        """Send on the control pipe, ahead of what is queued on the data pipe."""
        self._control.write(encode_frame(message))

    def expect_frame_within(self, seconds: float | None) -> None:
        """Kill the process unless a frame comes within `seconds`. None: no frame is expected, since it is idle."""
        if self._silence_timer:
            self._silence_timer.cancel()
        self._silence_timer = asyncio.get_running_loop().call_later(seconds, self._on_silence, seconds) if seconds else None

    def _on_silence(self, seconds: float) -> None:
        self.kill(ProcessExit("hang", f"the model process sent no heartbeat for {seconds:g} s and was killed"))

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
            case LoadProgress():
                log.info("engine.loading", activity=message.activity, fraction=message.fraction)
                self.expect_frame_within(message.timeout_seconds)
            case FatalError():
                self._fatal_error = message
            case _:
                self._on_message(message)

    async def _wait_for_exit(self) -> None:
        """Wait until the pipe closes or the process exits, whichever is first; then read what it still sent."""
        process_exit: asyncio.Future[Any] = asyncio.ensure_future(self.process.wait())
        either: set[asyncio.Future[Any]] = {process_exit, self._frames.closed}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait({process_exit}, timeout=2)
        if not done:
            self.kill(ProcessExit("crash", "the model process closed its pipe but did not exit"))
        code = await process_exit
        await asyncio.wait({self._frames.closed}, timeout=2)
        self.expect_frame_within(None)
        self._data.close()
        self._control.close()
        self.exited.set_result(self._kill_reason or classify_exit(code, self._fatal_error))
        if not self.ready.done():
            self.ready.cancel()


def classify_exit(code: int, fatal_error: FatalError | None) -> ProcessExit:
    """The meaning of an exit status. A negative one is a signal."""
    if fatal_error:
        return ProcessExit(fatal_error.cause, fatal_error.message)
    if code == -signal.SIGKILL:
        return ProcessExit("killed", "the model process was killed with SIGKILL, by a person or by the kernel because memory ran out")
    if code < 0:
        return ProcessExit("crash", f"the model process crashed with {signal.Signals(-code).name}")
    return ProcessExit("left" if code == 0 else "crash", f"the model process exited with status {code}")
