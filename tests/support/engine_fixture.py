"""The diffusion engine in the test process, and the stock pipeline to compare it with."""

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from actors.engines.diffusion.engine import DiffusionEngine, open_engine
from actors.engines.diffusion.families.stable_diffusion import StableDiffusion
from actors.engines.diffusion.request_check import resolve_request
from actors.engines.diffusion.requests import DiffusionRequest, LoraFile
from actors.engines.diffusion.schedulers import build_scheduler
from actors.engines.process.protocol import EngineEvent, EngineHost, Failed, Finished
from actors.engines.settings import ImageSettings


def silent_host(shm_dir: Path) -> EngineHost:
    """A host that ignores load progress and tick requests."""
    return EngineHost(lambda *_: None, lambda: None, shm_dir)


def open_image_engine(models: dict[str, Path], shm_dir: Path, /, **changes: Any) -> DiffusionEngine:
    shm_dir.mkdir(parents=True, exist_ok=True)
    settings = ImageSettings(model=str(models["tiny-sd"]), **changes)
    return open_engine(settings, silent_host(shm_dir))


def loaded_pipeline(engine: DiffusionEngine) -> Any:
    """The pipeline of the engine's default model."""
    return engine.models.default().family.pipeline


def lora_file(models: dict[str, Path], name: str, scale: float = 1.0) -> LoraFile:
    path = models[f"tiny-lora-{name}"]
    return LoraFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), scale, name)


def run_to_end(engine: DiffusionEngine, request_ids: Iterable[int], *, seconds: float = 60.0) -> dict[int, Finished | Failed]:
    """Tick until all requests have finished or failed."""
    pending, events, limit = set(request_ids), {}, time.monotonic() + seconds
    while pending - set(events):
        assert time.monotonic() < limit, f"requests {pending - set(events)} did not finish"
        events |= {event.request_id: event for event in run_tick(engine) if isinstance(event, Finished | Failed)}
    return events


def run_tick(engine: DiffusionEngine) -> list[EngineEvent]:
    if engine.idle_seconds() == 0:
        return list(engine.tick())
    time.sleep(0.002)
    return []


def draw_images(engine: DiffusionEngine, requests: dict[int, DiffusionRequest]) -> dict[int, list[Any]]:
    for request_id, request in requests.items():
        engine.submit(request_id, request)
    return {request_id: output_images(event) for request_id, event in run_to_end(engine, requests).items()}


def output_images(event: Finished | Failed) -> list[Any]:
    assert isinstance(event, Finished), event
    return [np.asarray(Pillow.open(file)).astype(int) for file in event.output_files]


class StockPipeline:
    """The unmodified pipeline of diffusers, one request at a time, with a LoRA loaded and unloaded as documented."""

    def __init__(self, model: Path) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        self.pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.config = self.pipeline.scheduler.config

    def draw(self, order: DiffusionRequest) -> list[Any]:
        import torch

        request = resolve_request(order, StableDiffusion, 512)
        self.pipeline.scheduler = build_scheduler(request.scheduler, self.config)
        for number, lora in enumerate(request.loras):
            self.pipeline.load_lora_weights(lora.path, adapter_name=f"lora-{number}")
        if request.loras:
            self.pipeline.set_adapters([f"lora-{number}" for number in range(len(request.loras))], [lora.scale for lora in request.loras])
        generators = [torch.Generator().manual_seed(request.seed + index) for index in range(request.count)]
        images = self.pipeline(
            request.prompt, negative_prompt=request.negative_prompt, width=request.width, height=request.height,
            num_inference_steps=request.steps, guidance_scale=request.guidance_scale,
            num_images_per_prompt=request.count, generator=generators,
        ).images  # fmt: skip
        if request.loras:
            self.pipeline.unload_lora_weights()
        return [np.asarray(image).astype(int) for image in images]


def max_pixel_difference(images: list[Any], other_images: list[Any]) -> int:
    """The largest difference of any value of any pixel, of 255."""
    assert len(images) == len(other_images)
    return max(int(np.abs(image - other_image).max()) for image, other_image in zip(images, other_images, strict=True))
