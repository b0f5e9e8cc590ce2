"""Stable Diffusion with diffusers: all active orders advance together, one step a tick, each with its own schedule, seed and LoRA.

An order waits in `_pending`, is encoded and becomes rows, its rows are stepped until done, then the darkroom decodes them.
"""

import hashlib
import time
import warnings
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.engines.batching import Row, StepGroups, advance, predict_noise
from actors.engines.diffusion_model import DiffusionModel, choose_device, load_model, measure_model, unload_model
from actors.engines.finishing import Darkroom, Undeveloped, latent_size
from actors.engines.gpu_watch import GpuWatch
from actors.engines.image_work import ImageWork
from actors.engines.loras import check_lora
from actors.engines.png import preview_jpeg
from actors.engines.protocol import Advanced, Event, Failed, Finished, Lifeline, Started
from actors.engines.residency import NoRoom, Residency
from actors.engines.rungs import Rungs, slice_attention, slice_vae
from actors.engines.schedulers import SCHEDULERS, build_scheduler
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError

BEGIN_SECONDS = 0.05


def open_engine(settings: ImageSettings, lifeline: Lifeline) -> "DiffusersImage":
    """Import torch, choose the device, load the model if it is to be warm."""
    lifeline.beat("importing torch and diffusers", 300.0, None)
    import diffusers
    import torch
    import transformers

    warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are what we want
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    if settings.threads:
        torch.set_num_threads(settings.threads)
    engine = DiffusersImage(settings, lifeline)
    if settings.warm:
        engine.models.get(settings.model)
    return engine


@dataclass(eq=False)
class Painting:
    """One order at work."""

    ticket: int
    work: ImageWork
    model: DiffusionModel
    rows: list[Row]
    told: int = 0
    largest_batch: int = 0
    rungs: tuple[str, ...] = ()
    preview_at: float = field(default_factory=time.monotonic)


class DiffusersImage:
    """One device's engine. Everything but the darkroom runs in the thread that calls it."""

    def __init__(self, settings: ImageSettings, lifeline: Lifeline) -> None:
        self.settings, self.lifeline = settings, lifeline
        self.device, self.dtype = choose_device(settings)
        self.models: Residency[DiffusionModel] = Residency(
            settings.memory_budget_bytes,
            measure=lambda name: measure_model(name, settings),
            load=lambda name: load_model(name, self.device, self.dtype, settings, lifeline),
            unload=unload_model,
            busy=self._busy,
            pinned=frozenset({settings.model} if settings.pinned else ()),
        )
        self.rungs = Rungs(settings.max_rows)
        self.darkroom = Darkroom(lifeline.spool, self.rungs, wake=lifeline.wake, seconds=settings.decode_seconds)
        self.watch = GpuWatch(self.device)
        self.groups = StepGroups()
        self._pending: deque[tuple[int, ImageWork]] = deque()
        self._paintings: dict[int, Painting] = {}
        self._developing: set[int] = set()
        self._inference: Any = None

    @property
    def info(self) -> dict[str, Any]:
        seconds = 60.0 if self.device.startswith("cuda") else 600.0
        return {"device": self.device, "dtype": self.dtype, "models": self.models.names, "step_seconds": seconds}

    def _busy(self, name: str) -> bool:
        return any(painting.model.name == name for painting in self._paintings.values())

    def self_test(self) -> None:
        """A small product on the device, compared with what it must be."""
        import torch

        ones = torch.ones((64, 64), device=self.device)
        if float((ones @ ones).sum()) != 64.0**3:
            raise RuntimeError(f"the device {self.device} does not compute")

    def submit(self, ticket: int, work: ImageWork) -> None:
        if work.scheduler not in SCHEDULERS:
            raise PermanentError("scheduler-unknown", f"{work.scheduler!r} is not one of {', '.join(SCHEDULERS)}")
        if work.model and work.model not in self.settings.models:
            raise PermanentError("model-unknown", f"{work.model!r} is not in IMAGE_MODELS: {', '.join(self.settings.models) or 'none'}")
        if work.width % 8 or work.height % 8:
            raise PermanentError("size-unknown", f"{work.width}×{work.height}: both sides must be multiples of 8")
        if lora := work.lora:
            check_lora(lora.path, lora.origin, max_bytes=self.settings.lora_max_bytes, max_rank=self.settings.lora_max_rank)
        self._pending.append((ticket, work))

    def cancel(self, ticket: int) -> bool:
        if ticket in self._developing:
            self._developing.discard(ticket)
            self.darkroom.dropped.add(ticket)
            return True
        waiting = [order for order in self._pending if order[0] == ticket]
        for order in waiting:
            self._pending.remove(order)
        self.groups.remove(lambda row: row.ticket == ticket)
        painting = self._paintings.pop(ticket, None)
        if painting:
            painting.model.loras.release(painting.work.lora)
        return bool(waiting or painting)

    def idle_seconds(self) -> float | None:
        if self._pending or self._paintings or self.darkroom.done or self.darkroom.exhausted:
            return 0
        return self.watch.due_seconds()

    def tick(self) -> Sequence[Event]:
        """Take in orders that wait, make one step of the group whose turn it is, and hand over what the darkroom has."""
        import torch

        self.darkroom.check()
        with torch.inference_mode():
            events = self._begin_some()
            if self._paintings:
                events += self._step()
        events += self._collect()
        if not self._paintings:
            self.rungs.recover()
        return [*events, *self.watch.gauges(self)]

    def close(self) -> None:
        self.darkroom.close()

    # -- from waiting to rows

    def _begin_some(self) -> list[Event]:
        """Orders that came together begin together, but the rows at work are not kept waiting for long."""
        events: list[Event] = []
        until = time.monotonic() + BEGIN_SECONDS
        while begun := self._begin():
            events += begun
            if time.monotonic() > until:
                break
        return events

    def _begin(self) -> list[Event]:
        for order in list(self._pending):
            ticket, work = order
            try:
                painting = self._start(ticket, work)
            except NoRoom:
                painting = None
            except (PermanentError, TemporaryError) as error:
                self._pending.remove(order)
                return [Failed(ticket, "permanent" if isinstance(error, PermanentError) else "temporary", error.code, str(error))]
            if painting:
                self._pending.remove(order)
                self._paintings[ticket] = painting
                for row in painting.rows:
                    self.groups.add(row)
                return [Started(ticket)]
        return []

    def _start(self, ticket: int, work: ImageWork) -> Painting | None:
        """None: it has to wait until a LoRA slot is free."""
        name = self.settings.models[work.model] if work.model else self.settings.model
        model = self.models.get(name)
        if not model.loras.free_for(work.lora):
            return None
        adapter = model.loras.acquire(work.lora)
        try:
            rows = self.rungs.try_hard(
                lambda: [self._row(ticket, work, model, adapter, index) for index in range(work.count)],
                lambda: slice_vae(model.pipeline, model.sliced) or slice_attention(model.pipeline, model.sliced),
            )
        except BaseException:
            model.loras.release(work.lora)
            raise
        return Painting(ticket, work, model, rows)

    def _row(self, ticket: int, work: ImageWork, model: DiffusionModel, adapter: str, index: int) -> Row:
        """A picture at its beginning: its noise comes from its own generator, on the CPU, so that every device draws the same."""
        import torch

        scheduler = build_scheduler(work.scheduler, model.pipeline.scheduler.config)
        scheduler.set_timesteps(work.steps, device=self.device)
        generator = torch.Generator().manual_seed((work.seed + index) % 2**63)
        shape = (1, model.pipeline.unet.config.in_channels, *latent_size(model.pipeline, work.height, work.width))
        noise = torch.randn(shape, generator=generator, dtype=model.torch_dtype).to(self.device) * scheduler.init_noise_sigma
        positive, negative = model.encode(work.prompt, work.negative_prompt, adapter)
        group: Hashable = (model.name, work.height, work.width, *((ticket, index) if work.deterministic else ()))
        return Row(ticket, index, group, scheduler, scheduler.timesteps, generator, noise, positive, negative, work.guidance_scale, adapter)

    # -- from rows to latents

    def _step(self) -> list[Event]:
        rows = self.groups.next_group()
        model = self._paintings[rows[0].ticket].model
        self.rungs.try_hard(lambda: self._advance(model, rows), lambda: self._climb(model, len(rows)))
        self.watch.stepped(len(rows))
        paintings = {row.ticket: self._paintings[row.ticket] for row in rows}
        events: list[Event] = []
        for painting in paintings.values():
            painting.rungs = self.rungs.standing or painting.rungs
            painting.largest_batch = max(painting.largest_batch, min(len(rows), self.rungs.limit))
            events += self._tell(painting)
            if all(row.done for row in painting.rows):
                self._develop(painting)
        return events

    def _advance(self, model: DiffusionModel, rows: Sequence[Row]) -> None:
        advance(rows, lambda part, inputs: predict_noise(model.pipeline.unet, part, inputs, model.loras.name_rows), self.rungs.limit)

    def _climb(self, model: DiffusionModel, rows: int) -> str | None:
        return self.rungs.halve(rows) or slice_vae(model.pipeline, model.sliced) or slice_attention(model.pipeline, model.sliced)

    def _tell(self, painting: Painting) -> list[Event]:
        """Steps as the order counts them: some schedulers take more."""
        total = painting.work.steps
        made = sum(row.at * total // len(row.timesteps) for row in painting.rows) // len(painting.rows)
        if made == painting.told:
            return []
        painting.told = made
        return [Advanced(painting.ticket, made, total, self._preview(painting))]

    def _preview(self, painting: Painting) -> bytes | None:
        if not painting.work.preview or time.monotonic() - painting.preview_at < self.settings.preview_seconds:
            return None
        painting.preview_at = time.monotonic()
        return preview_jpeg(painting.rows[0].latents)

    # -- from latents to pictures

    def _develop(self, painting: Painting) -> None:
        ticket, work, model = painting.ticket, painting.work, painting.model
        del self._paintings[ticket]
        self.groups.remove(lambda row: row.ticket == ticket)
        model.loras.release(work.lora)
        self._developing.add(ticket)
        texts = work.texts | model.texts | describe(work)
        latents = [row.latents for row in painting.rows]
        self.darkroom.put(Undeveloped(ticket, work, model.pipeline, latents, texts, painting.largest_batch, painting.rungs, model.sliced))

    def _collect(self) -> list[Event]:
        developed = self.darkroom.collect()
        for event in developed:
            self._developing.discard(event.ticket)
            self.watch.finished(len(event.parcels) if isinstance(event, Finished) else 0)
        return [*developed]


def describe(work: ImageWork) -> dict[str, str]:
    """What goes into each PNG; the prompt itself stays private, its sha256 tells whether it was this one."""
    texts = {
        "prompt_sha256": hashlib.sha256(work.prompt.encode()).hexdigest(),
        "steps": str(work.steps),
        "guidance_scale": f"{work.guidance_scale:g}",
        "scheduler": work.scheduler,
    }
    if work.lora:
        texts |= {"lora_sha256": work.lora.sha256, "lora_scale": f"{work.lora.scale:g}"}
    return texts
