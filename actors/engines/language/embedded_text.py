"""The embedded text engine as the text actor sees it: the bounded executor with the language model in its own process."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from actors.engines.language.content_logprobs import ContentLogprobs
from actors.engines.language.requests import EngineState, GenerationChunk, GenerationRequest, TextModelOptions, TextResponse
from actors.engines.language.tool_calls import AnswerReader, left_out
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.gpu import gpu_figures
from actors.engines.process.protocol import EngineSpec, Progressed
from actors.engines.settings import ExecutorSettings
from actors.engines.shared_resource import SetUnready
from bus.errors import EngineCrashed

MAX_IN_FLIGHT = 256
"""Answers in the executor; an upper bound: the text actor has 32 requests with 4 answers at a time, the responses actor 32 with one."""


class EmbeddedTextEngine:
    """Generates with the executor: fair to the tenants, cancelled with the caller, restarted when the process hangs or dies."""

    name = "embedded"

    def __init__(self, executor: Executor, options: TextModelOptions) -> None:
        self.executor, self._options = executor, options
        self.generated_tokens = 0
        self.last_token_at: float | None = None
        self._progress_at = time.monotonic()

    async def ready(self) -> str:
        await self.executor.ready()
        return str(self.executor.info["model"])

    async def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncGenerator[GenerationChunk]:
        """Without a seed one is drawn, so that a request that runs again after a crash writes the same text, with the same calls."""
        if request.seed is None:
            request = replace(request, seed=random.getrandbits(63))
        if not self.executor.running:
            self._progress_at = time.monotonic()
        reports: asyncio.Queue[Progressed | None] = asyncio.Queue()
        execution = asyncio.ensure_future(
            self.executor.run(request, tenant=request.tenant, deadline=deadline, on_progress=reports.put_nowait)
        )
        execution.add_done_callback(lambda _: reports.put_nowait(None))
        sent, tokens, received_logprobs = "", 0, 0
        shown_logprobs = ContentLogprobs()
        reader: AnswerReader | None = None
        try:
            while (report := await reports.get()) is not None:
                self._count_tokens(report.step - tokens)
                tokens = max(tokens, report.step)
                new = continue_text(sent, report.text, report.text_start)
                sent += new
                reader = reader or self._reader(request)
                new_logprobs = report.logprobs[max(0, received_logprobs - report.logprobs_start) :]
                received_logprobs += len(new_logprobs)
                parts = reader.push(new)
                shown = shown_logprobs.push(new_logprobs, parts.content, is_other=parts.has_other)
                if parts:
                    yield GenerationChunk(
                        parts.content, report.step, reasoning=parts.reasoning, tool_calls=parts.tool_calls, logprobs=shown
                    )
            result = await execution
            response: TextResponse = result.result
        finally:
            if not execution.done():
                execution.cancel()
                await asyncio.gather(execution, return_exceptions=True)
        self._count_tokens(response.completion_tokens - tokens)
        reader = reader or self._reader(request)
        parts = reader.push(continue_text(sent, response.text, 0), ends=True)
        yield GenerationChunk(
            parts.content,
            response.completion_tokens,
            reader.finish_reason(response.finish_reason),
            response.prompt_tokens,
            left_out(request),
            reasoning=parts.reasoning,
            tool_calls=parts.tool_calls,
            logprobs=shown_logprobs.push(response.logprobs[received_logprobs:], parts.content, is_other=parts.has_other, ends=True),
            cached_tokens=response.cached_tokens,
            reasoning_tokens=response.reasoning_tokens,
            device_seconds=result.device_seconds,
        )

    def _reader(self, request: GenerationRequest) -> AnswerReader:
        """Of an answer whose process is ready, so that it is known what its model does."""
        thinks = bool(self.executor.info.get("thinks")) and request.prompt is None
        return AnswerReader(request, thinks=thinks, in_reasoning=False, seed=request.seed or 0)

    def _count_tokens(self, new: int) -> None:
        """Progress, also the start of a request, is a sign of life."""
        self._progress_at = time.monotonic()
        if new > 0:
            self.generated_tokens += new
            self.last_token_at = time.time()

    async def unavailable_reason(self) -> str | None:
        """Why a request would not be answered now: the process does not run, or it runs and is silent. None: it would."""
        if self.silent_seconds > self._options.stall_seconds:
            return f"the model process has generated no token for {self.silent_seconds:.0f} s, and requests are running"
        return await self.executor.unavailable_reason()

    def snapshot(self) -> dict[str, Any]:
        return self.executor.snapshot()

    @property
    def silent_seconds(self) -> float:
        """For how long running requests have shown no progress."""
        return time.monotonic() - self._progress_at if self.executor.running else 0.0

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        """Not counted apart: a prompt that is too long is refused with its length before any work."""
        return None

    async def vision(self) -> bool | None:
        return False

    async def state(self) -> EngineState:
        executor, info, metrics = self.executor, self.executor.info, self.executor.snapshot()
        gauges = {name: value for name in DEVICE_GAUGES if (value := metrics.get(f"engine_{name}", info.get(name))) is not None}
        return EngineState(
            running=executor.running,
            waiting=executor.in_flight - executor.running,
            generated_tokens=self.generated_tokens,
            last_token_at=self.last_token_at,
            silent_seconds=self.silent_seconds,
            max_model_len=info.get("max_model_len"),
            vision=False,
            loras=tuple(self._options.loras),
            device=info.get("device"),
            **gpu_figures([gauges] if str(info.get("device")).startswith("cuda") else []),
            config={
                name: value
                for name, value in {
                    "model": info.get("model"),
                    "max_model_len": info.get("max_model_len"),
                    "max_num_seqs": self._options.max_rows,
                    "dtype": info.get("dtype"),
                }.items()
                if value is not None
            },
        )


DEVICE_GAUGES = ("device_memory_used_bytes", "device_memory_bytes", "device_busy_share")


def continue_text(sent: str, text: str, start: int) -> str:
    """What `text`, which begins at character `start` of the answer, adds to what was sent. A request that runs again repeats its text.

    Raises EngineCrashed when it writes another text: what was sent cannot be taken back, so the message is handled anew.
    """
    known = sent[start : start + len(text)]
    if start > len(sent) or not text.startswith(known):
        raise EngineCrashed("the model process was restarted, and the answer that it began before would not be continued")
    return text[len(known) :]


@asynccontextmanager
async def open_embedded_text_engine(options: TextModelOptions, set_unready: SetUnready) -> AsyncIterator[EmbeddedTextEngine]:
    """A text engine whose process loads the model in the background; `set_unready` is called when it cannot and when it can again."""
    spec = EngineSpec("actors.engines.language.text_model:open_text_model", options)
    async with open_executor(
        spec, ExecutorSettings(), max_in_flight=MAX_IN_FLIGHT, capacity=options.max_rows, set_unready=set_unready
    ) as executor:
        yield EmbeddedTextEngine(executor, options)
