"""The one thread that uses the VAEs: it encodes the pictures of edits and decodes latents, so that denoising steps do not wait for it."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from actors.engines.process.device_time import DeviceTime
from actors.engines.process.protocol import MemoryExhausted


@dataclass(eq=False)
class VaeTask:
    """`work` is called in the thread, without a gradient. `discard` gets its result when the request was cancelled meanwhile."""

    request_id: int
    work: Callable[[], Any]
    discard: Callable[[Any], None] = lambda _: None


@dataclass(frozen=True)
class VaeResult:
    """`value`: what the task returned, or the exception that it raised."""

    request_id: int
    value: Any


class VaeThread:
    """Takes tasks with `put`; appends to `results` and calls `request_tick`."""

    def __init__(self, *, request_tick: Callable[[], None], timeout_seconds: float, device_time: DeviceTime) -> None:
        self.request_tick, self.timeout_seconds, self.device_time = request_tick, timeout_seconds, device_time
        self.results: deque[VaeResult] = deque()
        self.out_of_memory: str | None = None
        self._pending: dict[int, VaeTask] = {}
        self._cancelled: set[int] = set()
        self._started_at: float | None = None
        self._queue: SimpleQueue[VaeTask | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vae", daemon=True)
        self._thread.start()

    @property
    def has_results(self) -> bool:
        return bool(self.results or self.out_of_memory)

    def put(self, task: VaeTask) -> None:
        self._pending[task.request_id] = task
        self._queue.put(task)

    def cancel(self, request_id: int) -> bool:
        """Whether the thread had a task of the request. Its result is discarded; a task that has not begun does not begin."""
        if request_id not in self._pending:
            return False
        self._cancelled.add(request_id)
        return True

    def is_cancelled(self, request_id: int) -> bool:
        return request_id in self._cancelled

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=5)

    def raise_if_stuck(self) -> None:
        """Raises MemoryExhausted, or RuntimeError when one task takes too long: only a new process helps."""
        if self.out_of_memory:
            raise MemoryExhausted(self.out_of_memory)
        if self._started_at is not None and time.monotonic() - self._started_at > self.timeout_seconds:
            raise RuntimeError(f"encoding or decoding the pictures of one order took longer than {self.timeout_seconds:g} s")

    def take_results(self) -> list[VaeResult]:
        """The results since the last call, without those of cancelled requests."""
        taken: list[VaeResult] = []
        while self.results:
            result = self.results.popleft()
            task = self._pending.pop(result.request_id)
            if result.request_id in self._cancelled:
                self._cancelled.discard(result.request_id)
                task.discard(result.value)
            else:
                taken.append(result)
        return taken

    def _run(self) -> None:
        import torch

        while task := self._queue.get():
            self._started_at = time.monotonic()
            try:
                with torch.inference_mode():
                    value = None if task.request_id in self._cancelled else self._work(task)
            except MemoryExhausted as error:
                self.out_of_memory = str(error)
                value = error
            except Exception as error:
                value = error
            self.results.append(VaeResult(task.request_id, value))
            self._started_at = None
            self.request_tick()

    def _work(self, task: VaeTask) -> Any:
        with self.device_time.work_equally([task.request_id]):
            return task.work()
