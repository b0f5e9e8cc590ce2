"""One spawned process as its parent sees it: frames out, frames in, a watch on its silence, and how it ended. Purely asynchronous."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import structlog

from actors.engines.framing import FrameProtocol, pack
from actors.engines.protocol import Beat, Broken, Death, Opening, Ready

log = structlog.get_logger()

# A plain start of Python: no fork (CUDA does not survive one), and no second run of the parent's main module, as multiprocessing does.
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from actors.engines.child import main; main(*map(int, sys.argv[2:]))"


class Lane:
    """`ready` is done when the engine is open; `ended` when the process is no more, with its death."""

    def __init__(self, on_message: Callable[[Any], None]) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[Ready] = loop.create_future()
        self.ended: asyncio.Future[Death] = loop.create_future()
        self.closing = False
        self._on_message = on_message
        self._last_word: Broken | None = None
        self._verdict: Death | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @classmethod
    async def spawn(cls, opening: Opening, on_message: Callable[[Any], None], *, load_seconds: float) -> "Lane":
        """Start the process and have it open its engine; it is killed when that is silent for `load_seconds`."""
        lane = cls(on_message)
        ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
        try:
            descriptors = [end.fileno() for end in theirs]
            lane.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", START, json.dumps(sys.path), *map(str, descriptors),
                stdin=asyncio.subprocess.DEVNULL, stdout=2, pass_fds=descriptors,
            )  # fmt: skip
        finally:
            for end in theirs:
                end.close()
        await lane._connect(*ours)
        lane.expect(load_seconds)
        lane.send(opening)
        return lane

    process: asyncio.subprocess.Process

    async def _connect(self, data: socket.socket, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._data, self._frames = await loop.create_unix_connection(lambda: FrameProtocol(self._hear), sock=data)
        self._control, _ = await loop.create_unix_connection(lambda: FrameProtocol(lambda _: None), sock=control)
        self._watch = asyncio.create_task(self._await_end())

    def send(self, message: Any) -> None:
        self._data.write(pack(message))

    def command(self, message: Any) -> None:
        """Over the control pipe, past whatever waits on the data pipe."""
        self._control.write(pack(message))

    def expect(self, seconds: float | None) -> None:
        """A frame must come within so many seconds, or the process is killed. None: it may be silent, it has nothing to do."""
        if self._alarm:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(seconds, self._too_silent, seconds) if seconds else None

    def _too_silent(self, seconds: float) -> None:
        self.kill(Death("hang", f"the model process gave no sign for {seconds:g} s and was killed"))

    def kill(self, verdict: Death) -> None:
        self._verdict = self._verdict or verdict
        if self.process.returncode is None:
            self.process.kill()

    def _hear(self, message: Any) -> None:
        match message:
            case Ready():
                self.expect(None)
                if not self.ready.done():
                    self.ready.set_result(message)
            case Beat(note=note, limit_seconds=limit, share=share):
                log.info("engine.busy", note=note, share=share)
                self.expect(limit)
            case Broken():
                self._last_word = message
            case _:
                self._on_message(message)

    async def _await_end(self) -> None:
        """The pipe ends or the process ends, whichever is seen first; then what it still said is read."""
        leaving: asyncio.Future[Any] = asyncio.ensure_future(self.process.wait())
        ends: set[asyncio.Future[Any]] = {leaving, self._frames.ended}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait({leaving}, timeout=2)
        if not done:
            self.kill(Death("crash", "the model process closed its pipe and stayed"))
        code = await leaving
        await asyncio.wait({self._frames.ended}, timeout=2)
        self.expect(None)
        self._data.close()
        self._control.close()
        self.ended.set_result(self._verdict or death_of(code, self._last_word))
        if not self.ready.done():
            self.ready.cancel()


def death_of(code: int, last_word: Broken | None) -> Death:
    """What an exit status says. A negative one is a signal."""
    if last_word:
        return Death(last_word.cause, last_word.message)
    if code == -signal.SIGKILL:
        return Death("killed", "the model process was killed from outside, or by the kernel for want of memory")
    if code < 0:
        return Death("crash", f"the model process crashed with {signal.Signals(-code).name}")
    return Death("left" if code == 0 else "crash", f"the model process left with status {code}")
