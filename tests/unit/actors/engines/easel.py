"""The image engine in the test's own process, and the stock pipeline to compare it with."""

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from actors.engines.diffusers_image import DiffusersImage, open_engine
from actors.engines.image_work import ImageWork, LoraFile
from actors.engines.protocol import Event, Failed, Finished, Lifeline
from actors.engines.schedulers import build_scheduler
from actors.engines.settings import ImageSettings


def open_easel(made: dict[str, Path], spool: Path, **changes: Any) -> DiffusersImage:
    spool.mkdir(parents=True, exist_ok=True)
    settings = ImageSettings(model=str(made["tiny-sd"]), **changes)
    return open_engine(settings, Lifeline(lambda *_: None, lambda: None, spool))


def lora_file(made: dict[str, Path], name: str, scale: float = 1.0) -> LoraFile:
    path = made[f"tiny-lora-{name}"]
    return LoraFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), scale, name)


def finish(engine: DiffusersImage, tickets: Iterable[int], *, seconds: float = 60.0) -> dict[int, Finished | Failed]:
    """Tick until all have an end."""
    wanted, ends, limit = set(tickets), {}, time.monotonic() + seconds
    while wanted - set(ends):
        assert time.monotonic() < limit, f"{wanted - set(ends)} did not end"
        ends |= {event.ticket: event for event in step(engine) if isinstance(event, Finished | Failed)}
    return ends


def step(engine: DiffusersImage) -> list[Event]:
    if engine.idle_seconds() == 0:
        return list(engine.tick())
    time.sleep(0.002)
    return []


def draw(engine: DiffusersImage, works: dict[int, ImageWork]) -> dict[int, list[Any]]:
    for ticket, work in works.items():
        engine.submit(ticket, work)
    return {ticket: pictures(end) for ticket, end in finish(engine, works).items()}


def pictures(end: Finished | Failed) -> list[Any]:
    assert isinstance(end, Finished), end
    return [np.asarray(Pillow.open(file)).astype(int) for file in end.parcels]


class Stock:
    """The pipeline of diffusers as it comes, one order at a time. A LoRA is loaded and unloaded as its documents say."""

    def __init__(self, model: Path) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        self.pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.config = self.pipeline.scheduler.config

    def draw(self, work: ImageWork) -> list[Any]:
        import torch

        self.pipeline.scheduler = build_scheduler(work.scheduler, self.config)
        if work.lora:
            self.pipeline.load_lora_weights(work.lora.path, adapter_name="only")
            self.pipeline.set_adapters(["only"], [work.lora.scale])
        generators = [torch.Generator().manual_seed(work.seed + index) for index in range(work.count)]
        made = self.pipeline(
            work.prompt, negative_prompt=work.negative_prompt, num_inference_steps=work.steps, guidance_scale=work.guidance_scale,
            width=work.width, height=work.height, num_images_per_prompt=work.count, generator=generators,
        ).images  # fmt: skip
        if work.lora:
            self.pipeline.unload_lora_weights()
        return [np.asarray(picture).astype(int) for picture in made]


def apart(some: list[Any], others: list[Any]) -> int:
    """The greatest difference of any value of any pixel, of 255."""
    assert len(some) == len(others)
    return max(int(np.abs(one - other).max()) for one, other in zip(some, others, strict=True))
