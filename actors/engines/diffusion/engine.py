"""Diffusion models of every family: all active orders advance together, one step a tick, each with its own schedule, seed and LoRAs.

An order is queued in `_pending`; its prompt is encoded and its images become rows, in the thread of the VAE if they start from a picture;
the rows are stepped until done and then decoded in that thread.
"""

import hashlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from actors.engines.diffusion.batching import DiffusionRow, RowAdapters, StepGroups, advance_rows
from actors.engines.diffusion.checkpoint_check import draw_test_picture
from actors.engines.diffusion.controlnets import cache_name
from actors.engines.diffusion.decode import SteppedOrder, decode_order, remove_files
from actors.engines.diffusion.loaded_models import LoadedModels
from actors.engines.diffusion.model import DiffusionModel
from actors.engines.diffusion.oom import OomFallbacks, enable_attention_slicing, enable_vae_slicing
from actors.engines.diffusion.requests import DiffusionRequest, LoraFile, ResolvedRequest
from actors.engines.diffusion.row_start import RowStarter
from actors.engines.diffusion.vae_thread import VaeResult, VaeTask, VaeThread
from actors.engines.process.device_time import DeviceTime
from actors.engines.process.failures import fail_request, is_device_failure
from actors.engines.process.gpu import EngineMonitor, choose_device, choose_dtype
from actors.engines.process.model_cache import InsufficientMemory
from actors.engines.process.protocol import EngineEvent, EngineHost, Failed, Finished, Progressed, Started
from actors.engines.settings import ImageSettings

T = TypeVar("T")

START_BUDGET_SECONDS = 0.05
"""The longest time of one tick for starting orders; active rows wait meanwhile."""
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
        engine.models.default()
    return engine


@dataclass(eq=False)
class ActiveOrder:
    """One order in the engine. `rows`: empty while its picture is encoded; `decoding`: its steps are done."""

    request_id: int
    request: ResolvedRequest
    model: DiffusionModel
    rows: list[DiffusionRow] = field(default_factory=list)
    decoding: bool = False
    reported_step: int = 0
    largest_batch: int = 0
    oom_fallbacks: tuple[str, ...] = ()
    last_preview_at: float = field(default_factory=time.monotonic)


class DiffusionEngine:
    """The engine of one device. All but the work of the VAE runs in the caller's thread."""

    def __init__(self, settings: ImageSettings, host: EngineHost) -> None:
        self.settings, self.host = settings, host
        self.device = choose_device(settings.device)
        self.dtype = choose_dtype(settings.dtype, self.device)
        self.models = LoadedModels(settings, self.device, self.dtype, host, self._in_use)
        self.oom = OomFallbacks(settings.max_rows)
        self.device_time = DeviceTime(self.device)
        self.vae_thread = VaeThread(request_tick=host.request_tick, timeout_seconds=settings.decode_seconds, device_time=self.device_time)
        self.monitor = EngineMonitor(self.device)
        self.groups = StepGroups()
        self._pending: deque[tuple[int, DiffusionRequest]] = deque()
        self._active: dict[int, ActiveOrder] = {}

    @property
    def info(self) -> dict[str, Any]:
        seconds = 60.0 if self.device.startswith("cuda") else 600.0
        saturation = {name: measured.describe() for name, measured in self.models.saturation.items()}
        device = {"device": self.device, "dtype": self.dtype, "step_seconds": seconds}
        return device | {"models": self.models.cache.names, "warnings": self.models.warnings, "saturation": saturation}

    def _in_use(self, name: str) -> bool:
        """Whether active orders need a model or a ControlNet, by its name in the cache."""
        orders = self._active.values()
        nets = {cache_name(order.request.control.model) for order in orders if order.request.control}
        return name in {order.model.name for order in orders} | nets

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
            draw_test_picture(self.models.default().family, full_size=True)

    def submit(self, request_id: int, request: DiffusionRequest) -> None:
        self.models.check(request)
        self._pending.append((request_id, request))

    def cancel(self, request_id: int) -> bool:
        pending = [entry for entry in self._pending if entry[0] == request_id]
        for entry in pending:
            self._pending.remove(entry)
        order = self._active.pop(request_id, None)
        if order:
            self.vae_thread.cancel(request_id)
            self._remove_rows(order)
        return bool(pending or order)

    def _remove_rows(self, order: ActiveOrder) -> None:
        """Its rows make no further step, and its LoRAs may be evicted."""
        self.groups.remove(lambda row: row.request_id == order.request_id)
        if not order.decoding:
            for lora in order.request.loras:
                order.model.loras.release(lora)

    def idle_seconds(self) -> float | None:
        if self._pending or self.groups.rows or self.vae_thread.has_results:
            return 0
        return self.monitor.next_report_seconds()

    def tick(self) -> Sequence[EngineEvent]:
        """Take what the VAE's thread has done, start pending orders, and make one step of the next group."""
        with self.device_time.work_equally(self._working_ids()):
            return self._tick()

    def _working_ids(self) -> list[int]:
        """The orders whose rows are stepped, else those in the VAE's thread, else those that wait."""
        stepped = dict.fromkeys(row.request_id for row in self.groups.rows)
        return list(stepped or self._active) or [request_id for request_id, _ in self._pending]

    def _tick(self) -> Sequence[EngineEvent]:
        import torch

        self.vae_thread.raise_if_stuck()
        events = self._collect_vae_results()
        with torch.inference_mode():
            events += self._start_pending()
            if self.groups.rows:
                events += self._step()
        if not self.groups.rows:
            self.oom.reset()
        return [*events, *self.monitor.metrics(self)]

    def close(self) -> None:
        self.vae_thread.close()

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
                with self.device_time.work_equally([request_id]):
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
                return [Started(request_id), Progressed(request_id, 0, order.request.steps)]
        return []

    def _prepare(self, request_id: int, request: DiffusionRequest) -> ActiveOrder | None:
        """The order, its prompt encoded and its rows about to begin; None: it has to wait until LoRA slots are free."""
        model = self.models.get(request)
        order = ActiveOrder(request_id, self.models.resolve(request, model), model)
        if not model.loras.has_slots_for(request.loras):
            return None
        control_net = self.models.get_control_net(order.request, model)
        acquired: list[LoraFile] = []
        adapters: list[tuple[str, float]] = []
        try:
            for lora in request.loras:
                adapters.append((model.loras.acquire(lora), lora.scale))
                acquired.append(lora)
            self._begin_rows(order, tuple(adapters), control_net)
            return order
        except BaseException:
            for lora in acquired:
                model.loras.release(lora)
            raise

    def _begin_rows(self, order: ActiveOrder, adapters: RowAdapters, control_net: Any) -> None:
        model, request = order.model, order.request
        conditions = self._with_fallbacks(model, partial(model.encode, request, adapters))
        starter = RowStarter(order.request_id, request, model.family, model.name, conditions, adapters, control_net, self.device_time)
        if request.edit:  # in the VAE's thread, which leaves all parts but the VAE to this one
            slice_vae = partial(enable_vae_slicing, model.family.pipeline, model.applied_fallbacks)
            self.vae_thread.put(VaeTask(order.request_id, partial(self.oom.run_with_fallbacks, starter.build_rows, slice_vae)))
        else:
            self._add_rows(order, self._with_fallbacks(model, starter.build_rows))

    def _with_fallbacks(self, model: DiffusionModel, operation: Callable[[], T]) -> T:
        return self.oom.run_with_fallbacks(operation, partial(self._next_fallback, model, 1))

    def _add_rows(self, order: ActiveOrder, rows: list[DiffusionRow]) -> None:
        order.rows = rows
        for row in rows:
            self.groups.add(row)

    # -- rows to latents

    def _step(self) -> list[EngineEvent]:
        rows = self.groups.next_group()
        model = self._active[rows[0].request_id].model
        events: list[EngineEvent] = list(self._advance_or_fail(model, rows))
        self.monitor.record_step(len(rows))
        orders = {row.request_id: self._active[row.request_id] for row in rows if row.request_id in self._active}
        for order in orders.values():
            order.oom_fallbacks = self.oom.active or order.oom_fallbacks
            order.largest_batch = max(order.largest_batch, min(len(rows), self._row_limit(model, rows)))
            events += self._report_progress(order)
            if all(row.done for row in order.rows):
                self._queue_decode(order)
        return events

    def _advance_or_fail(self, model: DiffusionModel, rows: Sequence[DiffusionRow]) -> list[Failed]:
        """One step of all rows. If it fails, each order makes it alone; one that fails alone fails, without the others."""
        step_indices = [row.step_index for row in rows]
        try:
            with self.device_time.work_equally([row.request_id for row in rows for _ in row.conditions]):
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
        self.oom.run_with_fallbacks(
            lambda: self._advance_rows(model, rows), lambda: self._next_fallback(model, min(len(rows), self._row_limit(model, rows)))
        )

    def _advance_rows(self, model: DiffusionModel, rows: Sequence[DiffusionRow]) -> None:
        advance_rows(model.family, rows, model.loras.set_row_adapters, self._row_limit(model, rows))

    def _row_limit(self, model: DiffusionModel, rows: Sequence[DiffusionRow]) -> int:
        """Rows of one call: those that fit into memory and pay. Further rows are stepped in further calls of the same tick."""
        return min(self.oom.row_limit, self.models.row_limit(model, rows[0].request))

    def _next_fallback(self, model: DiffusionModel, rows: int) -> str | None:
        return (
            model.loras.drop_stacked()
            or self.oom.halve_batch(rows)
            or model.text_encoders.offload_as_fallback(model.applied_fallbacks)
            or enable_vae_slicing(model.family.pipeline, model.applied_fallbacks)
            or enable_attention_slicing(model.family.pipeline, model.applied_fallbacks)
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
        preview, now = order.model.preview, time.monotonic()
        if not order.request.preview or preview is None or now - order.last_preview_at < self.settings.preview_seconds:
            return None
        order.last_preview_at = now
        return preview.jpeg(order.model.family.unpack(order.request, order.rows[0].latents))

    # -- the thread of the VAE

    def _queue_decode(self, order: ActiveOrder) -> None:
        request, model = order.request, order.model
        metadata = (
            request.metadata
            | model.metadata
            | {"family": model.family.name}
            | request_metadata(request)
            | model.loras.describe(request.loras)
        )
        self._remove_rows(order)
        order.decoding = True
        latents = [row.latents for row in order.rows]
        stepped = SteppedOrder(
            order.request_id, request, model.family, latents, metadata, order.largest_batch, order.oom_fallbacks, model.applied_fallbacks
        )
        self.vae_thread.put(VaeTask(order.request_id, partial(decode_order, stepped, self.oom, self.host.shm_dir), discard_files))

    def _collect_vae_results(self) -> list[EngineEvent]:
        return [event for result in self.vae_thread.take_results() for event in self._collect(result)]

    def _collect(self, result: VaeResult) -> list[EngineEvent]:
        """The rows of an order whose picture is encoded are added; one that is decoded is finished."""
        order = self._active[result.request_id]
        if isinstance(result.value, Exception):
            if is_device_failure(result.value):
                raise result.value
            self.cancel(order.request_id)
            return [fail_request(order.request_id, result.value)]
        if not order.decoding:
            self._add_rows(order, result.value)
            return []
        del self._active[order.request_id]
        self.monitor.record_images(len(result.value.output_files) if isinstance(result.value, Finished) else 0)
        return [result.value]


def discard_files(result: Any) -> None:
    if isinstance(result, Finished):
        remove_files(result.output_files)


def request_metadata(request: ResolvedRequest) -> dict[str, str]:
    """The file metadata of a request. The prompt stays private; its sha256 lets its owner verify it."""
    metadata = {
        "prompt_sha256": hashlib.sha256(request.prompt.encode()).hexdigest(),
        "steps": str(request.steps),
        "guidance_scale": f"{request.guidance_scale:g}",
        "scheduler": request.scheduler,
    }
    if request.true_cfg_scale is not None:
        metadata["true_cfg_scale"] = f"{request.true_cfg_scale:g}"
    if request.edit:
        metadata |= {"edit": "inpaint" if request.edit.mask else "img2img", "strength": f"{request.edit.strength:g}"}
    if request.control:
        metadata |= {"control": request.control.model, "control_scale": f"{request.control.scale:g}"}
    return metadata
