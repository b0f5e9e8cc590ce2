"""Stable Diffusion with diffusers: all active orders advance together, one step a tick, each with its own schedule, seed and LoRA.

An order is queued in `_pending`; its prompt is encoded and its images become rows; the rows are stepped until done and then decoded.
"""

import hashlib
import time
import warnings
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.engines.diffusion.batching import DiffusionRow, StepGroups, advance_rows, predict_noise
from actors.engines.diffusion.checkpoint_check import draw_test_picture
from actors.engines.diffusion.decode import DecodeThread, PendingDecode, latent_size
from actors.engines.diffusion.lora.validation import validate_lora
from actors.engines.diffusion.model import DiffusionModel, load_model, model_size_bytes, unload_model
from actors.engines.diffusion.oom import OomFallbacks, enable_attention_slicing, enable_vae_slicing
from actors.engines.diffusion.png import LATENT_RGB_FACTORS, preview_jpeg
from actors.engines.diffusion.requests import DiffusionRequest, LoraFile
from actors.engines.diffusion.schedulers import SCHEDULERS, build_scheduler
from actors.engines.process.failures import fail_request, is_device_failure
from actors.engines.process.gpu import EngineMonitor, choose_device, choose_dtype
from actors.engines.process.model_cache import InsufficientMemory, ModelCache
from actors.engines.process.protocol import EngineEvent, EngineHost, Failed, Finished, Progressed, Started
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError

START_BUDGET_SECONDS = 0.05
"""The longest time of one tick for starting orders; active rows wait meanwhile."""
UNUSABLE_SECONDS = 60.0
"""How long orders for a checkpoint that could not be loaded are refused before it is loaded again."""
FULL_PICTURE_SECONDS = 300.0
"""The longest time of the self-test after a crash: one step and the decoding, on a slow CPU."""


def open_engine(settings: ImageSettings, host: EngineHost) -> "DiffusionEngine":
    """Import torch, choose the device, and load the model if `settings.warm`."""
    host.report_load_progress("importing torch and diffusers", 300.0, None)
    import diffusers
    import torch
    import transformers

    warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are intended
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    if settings.threads:
        torch.set_num_threads(settings.threads)
    engine = DiffusionEngine(settings, host)
    if settings.warm:
        engine.models.get(settings.model)
    return engine


@dataclass(eq=False)
class ActiveOrder:
    """One order whose rows are denoised. `left_out`: tokens that the text encoder did not read, by the name of the result's field."""

    request_id: int
    request: DiffusionRequest
    model: DiffusionModel
    rows: list[DiffusionRow]
    left_out: dict[str, int] = field(default_factory=dict)
    reported_step: int = 0
    largest_batch: int = 0
    oom_fallbacks: tuple[str, ...] = ()
    last_preview_at: float = field(default_factory=time.monotonic)


class DiffusionEngine:
    """The engine of one device. All but the decoding runs in the caller's thread."""

    def __init__(self, settings: ImageSettings, host: EngineHost) -> None:
        self.settings, self.host = settings, host
        self.device = choose_device(settings.device)
        self.dtype = choose_dtype(settings.dtype, self.device)
        self.models: ModelCache[DiffusionModel] = ModelCache(
            settings.memory_budget_bytes,
            measure=lambda name: model_size_bytes(name, settings),
            load=self._load_model,
            unload=unload_model,
            in_use=self._in_use,
            pinned=frozenset({settings.model} if settings.pinned else ()),
        )
        self._unusable: dict[str, tuple[float, TemporaryError]] = {}
        self.oom = OomFallbacks(settings.max_rows)
        self.decoder = DecodeThread(host.shm_dir, self.oom, request_tick=host.request_tick, timeout_seconds=settings.decode_seconds)
        self.monitor = EngineMonitor(self.device)
        self.groups = StepGroups()
        self._pending: deque[tuple[int, DiffusionRequest]] = deque()
        self._active: dict[int, ActiveOrder] = {}
        self._decoding: set[int] = set()

    @property
    def info(self) -> dict[str, Any]:
        seconds = 60.0 if self.device.startswith("cuda") else 600.0
        return {"device": self.device, "dtype": self.dtype, "models": self.models.names, "step_seconds": seconds}

    def _in_use(self, name: str) -> bool:
        return any(order.model.name == name for order in self._active.values())

    def _load_model(self, name: str) -> DiffusionModel:
        try:
            return load_model(name, self.device, self.dtype, self.settings, self.host)
        except TemporaryError as error:
            self._unusable[name] = time.monotonic() + UNUSABLE_SECONDS, error
            raise

    def _refuse_unusable(self, name: str) -> None:
        """Raises the error of a checkpoint that could not be loaded a moment ago: to try again would evict sound models for it."""
        until, error = self._unusable.get(name, (0.0, None))
        if error and time.monotonic() < until:
            raise TemporaryError(str(error), code=error.code)

    def self_test(self) -> None:
        """Multiply two matrices and check the result; a model has drawn a small picture when it was loaded, and after a crash draws one
        of its full size. Raises RuntimeError, and what the model raises.
        """
        import torch

        ones = torch.ones((64, 64), device=self.device)
        if float((ones @ ones).sum()) != 64.0**3:
            raise RuntimeError(f"the device {self.device} does not compute")
        if self.host.after_crash:
            self.host.report_load_progress("drawing a test picture of full size", FULL_PICTURE_SECONDS, None)
            draw_test_picture(self.models.get(self.settings.model).pipeline, full_size=True)

    def submit(self, request_id: int, request: DiffusionRequest) -> None:
        if request.scheduler not in SCHEDULERS:
            raise PermanentError("scheduler-unknown", f"{request.scheduler!r} is not one of {', '.join(SCHEDULERS)}")
        if request.model and request.model not in self.settings.models:
            raise PermanentError("model-unknown", f"{request.model!r} is not in IMAGE_MODELS: {', '.join(self.settings.models) or 'none'}")
        if request.width % 8 or request.height % 8:
            raise PermanentError("size-unknown", f"{request.width}×{request.height}: both sides must be multiples of 8")
        self._refuse_unusable(self._checkpoint_of(request))
        if request.lora:
            self._check_lora(request.lora, self._checkpoint_of(request))
        self._pending.append((request_id, request))

    def _check_lora(self, lora: LoraFile, checkpoint: str) -> None:
        """Names and shapes, against the layers of the model where it is in memory; the weights are read when the order starts."""
        info = validate_lora(lora.path, lora.origin, max_bytes=self.settings.lora_max_bytes, max_rank=self.settings.lora_max_rank)
        if checkpoint in self.models.names:
            self.models.get(checkpoint).loras.layers.plan(info.shapes, lora.origin)

    def _checkpoint_of(self, request: DiffusionRequest) -> str:
        return self.settings.models[request.model] if request.model else self.settings.model

    def cancel(self, request_id: int) -> bool:
        if request_id in self._decoding:
            self._decoding.discard(request_id)
            self.decoder.cancelled_ids.add(request_id)
            return True
        pending = [entry for entry in self._pending if entry[0] == request_id]
        for entry in pending:
            self._pending.remove(entry)
        self.groups.remove(lambda row: row.request_id == request_id)
        order = self._active.pop(request_id, None)
        if order:
            order.model.loras.release(order.request.lora)
        return bool(pending or order)

    def idle_seconds(self) -> float | None:
        if self._pending or self._active or self.decoder.results or self.decoder.out_of_memory:
            return 0
        return self.monitor.next_report_seconds()

    def tick(self) -> Sequence[EngineEvent]:
        """Start pending orders, make one step of the next group, and collect decoded orders."""
        import torch

        self.decoder.raise_if_stuck()
        with torch.inference_mode():
            events = self._start_pending()
            if self._active:
                events += self._step()
        events += self._collect_decoded()
        if not self._active:
            self.oom.reset()
        return [*events, *self.monitor.metrics(self)]

    def close(self) -> None:
        self.decoder.close()

    # -- pending orders to rows

    def _start_pending(self) -> list[EngineEvent]:
        """Start pending orders, so that those that arrive together begin together, within START_BUDGET_SECONDS."""
        events: list[EngineEvent] = []
        until = time.monotonic() + START_BUDGET_SECONDS
        while started := self._start_next():
            events += started
            if time.monotonic() > until:
                break
        return events

    def _start_next(self) -> list[EngineEvent]:
        for entry in list(self._pending):
            request_id, request = entry
            try:
                order = self._prepare(request_id, request)
            except InsufficientMemory:
                order = None
            except Exception as error:
                if is_device_failure(error):
                    raise
                self._pending.remove(entry)
                return [fail_request(request_id, error)]
            if order:
                self._pending.remove(entry)
                self._active[request_id] = order
                for row in order.rows:
                    self.groups.add(row)
                return [Started(request_id)]
        return []

    def _prepare(self, request_id: int, request: DiffusionRequest) -> ActiveOrder | None:
        """The order with its rows; None: it has to wait until a LoRA slot is free."""
        self._refuse_unusable(self._checkpoint_of(request))
        model = self.models.get(self._checkpoint_of(request))
        if not model.loras.has_slot_for(request.lora):
            return None
        adapter = model.loras.acquire(request.lora)
        try:
            rows = self.oom.run_with_fallbacks(
                lambda: [self._build_row(request_id, request, model, adapter, index) for index in range(request.count)],
                lambda: (
                    enable_vae_slicing(model.pipeline, model.applied_fallbacks)
                    or enable_attention_slicing(model.pipeline, model.applied_fallbacks)
                ),
            )
            return ActiveOrder(request_id, request, model, rows, count_left_out(request, model))
        except BaseException:
            model.loras.release(request.lora)
            raise

    def _build_row(self, request_id: int, request: DiffusionRequest, model: DiffusionModel, adapter: str, index: int) -> DiffusionRow:
        """The row of one image. Its noise comes from its own generator on the CPU, so that it is the same on every device."""
        import torch

        scheduler = build_scheduler(request.scheduler, model.pipeline.scheduler.config)
        scheduler.set_timesteps(request.steps, device=self.device)
        generator = torch.Generator().manual_seed((request.seed + index) % 2**63)
        shape = (1, model.pipeline.unet.config.in_channels, *latent_size(model.pipeline, request.height, request.width))
        noise = torch.randn(shape, generator=generator, dtype=model.torch_dtype).to(self.device) * scheduler.init_noise_sigma
        positive, negative = model.encode_prompts(request.prompt, request.negative_prompt, adapter)
        group: Hashable = (model.name, request.height, request.width, *((request_id, index) if request.deterministic else ()))
        return DiffusionRow(
            request_id, index, group, scheduler, scheduler.timesteps, generator, noise, positive, negative, request.guidance_scale, adapter
        )

    # -- rows to latents

    def _step(self) -> list[EngineEvent]:
        rows = self.groups.next_group()
        model = self._active[rows[0].request_id].model
        events: list[EngineEvent] = list(self._advance_or_fail(model, rows))
        self.monitor.record_step(len(rows))
        orders = {row.request_id: self._active[row.request_id] for row in rows if row.request_id in self._active}
        for order in orders.values():
            order.oom_fallbacks = self.oom.active or order.oom_fallbacks
            order.largest_batch = max(order.largest_batch, min(len(rows), self.oom.row_limit))
            events += self._report_progress(order)
            if all(row.done for row in order.rows):
                self._queue_decode(order)
        return events

    def _advance_or_fail(self, model: DiffusionModel, rows: Sequence[DiffusionRow]) -> list[Failed]:
        """One step of all rows. If it fails, each order makes it alone; one that fails alone fails, without the others."""
        step_indices = [row.step_index for row in rows]
        try:
            self._advance(model, rows)
        except Exception as error:
            if is_device_failure(error):
                raise
            model.loras.set_row_adapters(None)
            if len({row.request_id for row in rows}) == 1:
                self.cancel(rows[0].request_id)
                return [fail_request(rows[0].request_id, error)]
        else:
            return []
        behind = [row for row, index in zip(rows, step_indices, strict=True) if row.step_index == index]
        orders = [[row for row in behind if row.request_id == request_id] for request_id in dict.fromkeys(row.request_id for row in behind)]
        return [failure for order in orders for failure in self._advance_or_fail(model, order)]

    def _advance(self, model: DiffusionModel, rows: Sequence[DiffusionRow]) -> None:
        self.oom.run_with_fallbacks(lambda: self._advance_rows(model, rows), lambda: self._next_fallback(model, len(rows)))

    def _advance_rows(self, model: DiffusionModel, rows: Sequence[DiffusionRow]) -> None:
        advance_rows(
            rows, lambda part, inputs: predict_noise(model.pipeline.unet, part, inputs, model.loras.set_row_adapters), self.oom.row_limit
        )

    def _next_fallback(self, model: DiffusionModel, rows: int) -> str | None:
        return (
            self.oom.halve_batch(rows)
            or enable_vae_slicing(model.pipeline, model.applied_fallbacks)
            or enable_attention_slicing(model.pipeline, model.applied_fallbacks)
        )

    def _report_progress(self, order: ActiveOrder) -> list[EngineEvent]:
        """Progress in the steps of the order, scaled where its scheduler takes more."""
        total = order.request.steps
        done = sum(row.step_index * total // len(row.timesteps) for row in order.rows) // len(order.rows)
        if done == order.reported_step:
            return []
        order.reported_step = done
        return [Progressed(order.request_id, done, total, self._preview(order))]

    def _preview(self, order: ActiveOrder) -> bytes | None:
        if (
            not order.request.preview
            or order.rows[0].latents.shape[1] != len(LATENT_RGB_FACTORS)
            or time.monotonic() - order.last_preview_at < self.settings.preview_seconds
        ):
            return None
        order.last_preview_at = time.monotonic()
        return preview_jpeg(order.rows[0].latents)

    # -- latents to images

    def _queue_decode(self, order: ActiveOrder) -> None:
        request_id, request, model = order.request_id, order.request, order.model
        del self._active[request_id]
        self.groups.remove(lambda row: row.request_id == request_id)
        lora_metadata = model.loras.describe(request.lora) if request.lora else {}
        model.loras.release(request.lora)
        self._decoding.add(request_id)
        left_out = {name: str(tokens) for name, tokens in order.left_out.items() if tokens}
        metadata = request.png_metadata | model.png_metadata | request_metadata(request) | lora_metadata | left_out
        batches = (order.left_out, order.largest_batch, order.oom_fallbacks, model.applied_fallbacks)
        self.decoder.put(PendingDecode(request_id, request, model.pipeline, [row.latents for row in order.rows], metadata, *batches))

    def _collect_decoded(self) -> list[EngineEvent]:
        results = self.decoder.take_results()
        for event in results:
            self._decoding.discard(event.request_id)
            self.monitor.record_images(len(event.output_files) if isinstance(event, Finished) else 0)
        return [*results]


def count_left_out(request: DiffusionRequest, model: DiffusionModel) -> dict[str, int]:
    """An unguided order has no negative prompt: it is not read at all."""
    negative = request.negative_prompt if request.guidance_scale > 1 else ""
    prompts = {"prompt_tokens_left_out": request.prompt, "negative_prompt_tokens_left_out": negative}
    return {name: model.count_left_out(prompt) for name, prompt in prompts.items()}


def request_metadata(request: DiffusionRequest) -> dict[str, str]:
    """The PNG metadata of a request. The prompt stays private; its sha256 lets its owner verify it."""
    return {
        "prompt_sha256": hashlib.sha256(request.prompt.encode()).hexdigest(),
        "steps": str(request.steps),
        "guidance_scale": f"{request.guidance_scale:g}",
        "scheduler": request.scheduler,
    }
