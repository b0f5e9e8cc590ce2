"""The engine with the tiny checkpoint of one family, and its pictures beside those of the stock pipelines."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling

from actors.engines.diffusion.engine import DiffusionEngine, open_engine
from actors.engines.diffusion.requests import DiffusionRequest, LoraFile
from actors.engines.process.protocol import Failed, Finished
from actors.engines.settings import ImageSettings
from tests.support.engine_fixture import output_images, run_tick, run_to_end, silent_host
from tests.support.family_orders import CASES, TINY, Arrival, write_family_loras
from tests.support.stock_families import StockFamily, pillow_image

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Drawn:
    """`pixels`: H × W × 3, 0…255; `latents`: after the last step; `companions`: the most images of a step with this one's."""

    pixels: Any
    latents: Any
    companions: int = 1

    def latent_difference(self, other: "Drawn") -> float:
        """The greatest difference of any value, relative to the greatest value of the other."""
        return float((self.latents.double() - other.latents.double()).abs().max() / other.latents.double().abs().max())


def pixel_difference(one: Drawn, other: Drawn) -> int:
    """The greatest difference of any value of any pixel, of 255."""
    assert one.pixels.shape == other.pixels.shape
    return int(np.abs(one.pixels.astype(int) - other.pixels.astype(int)).max())


@dataclass(frozen=True)
class KeptPixels:
    """`where`: H × W, true outside of the mask; `picture`: H × W × 3, the order's own."""

    where: Any
    picture: Any


def kept_pixels(request: DiffusionRequest) -> KeptPixels | None:
    """What an order with a mask keeps, in the order's size."""
    if not (request.edit and request.edit.mask and request.width and request.height):
        return None
    sources = [
        pillow_image(picture).resize((request.width, request.height), Resampling.LANCZOS)
        for picture in (request.edit.image, request.edit.mask)
    ]
    picture, mask = map(np.asarray, sources)
    return KeptPixels(mask < 128, picture)


class FamilyEngine:
    """`dtype` may be float64, which no setting offers: the model's parts are converted after they are loaded."""

    def __init__(self, name: str, checkpoints: Mapping[str, Path], folder: Path, dtype: str) -> None:
        self.tiny, self._folder = TINY[name], folder
        controlnets = {self.tiny.controlnet: checkpoints[self.tiny.controlnet]} if self.tiny.controlnet else {}
        self.engine = open_family_engine(checkpoints[name], controlnets, folder, "float32" if dtype == "float64" else dtype)
        family = self.engine.models.default().family
        if dtype == "float64":
            family.pipeline.to(torch.float64)
            self.engine.models.controlnets.dtype = torch.float64
        self._decode, family.decode = family.decode, self._remember_latents
        self._latents: dict[int, Any] = {}
        self._stock = StockFamily(checkpoints[name], DTYPES[dtype], controlnets)

    def _remember_latents(self, request: DiffusionRequest, latents: Any) -> Any:
        self._latents[request.seed] = latents.clone()
        return self._decode(request, latents)

    @cached_property
    def loras(self) -> dict[str, LoraFile]:
        return write_family_loras(self.tiny, self._stock.pipeline, self._folder)

    def draw(self, orders: Mapping[str, Arrival]) -> dict[str, Drawn]:
        """All orders, each of one image with a seed of its own, submitted before the tick at which they arrive."""
        numbers, events = {name: number for number, name in enumerate(orders, start=1)}, {}
        for tick in range(max(arrival.tick for arrival in orders.values()) + 1):
            for name, arrival in orders.items():
                if arrival.tick == tick:
                    self.engine.submit(numbers[name], arrival.request)
            self._wait_for_vae()
            events |= {event.request_id: event for event in run_tick(self.engine) if isinstance(event, Finished | Failed)}
        events |= run_to_end(self.engine, set(numbers.values()) - set(events))
        return {name: self._drawn(orders[name].request, events[number]) for name, number in numbers.items()}

    def _wait_for_vae(self) -> None:
        """So that it does not depend on the speed of the VAE's thread which orders share their calls."""
        thread = self.engine.vae_thread
        while len(thread.results) < len(thread._pending):
            time.sleep(0.001)

    def _drawn(self, request: DiffusionRequest, event: Finished | Failed) -> Drawn:
        pixels = output_images(event)[0]
        assert isinstance(event, Finished)
        return Drawn(pixels, self._latents.pop(request.seed), event.result.largest_batch)

    def draw_stock(self, orders: Mapping[str, Arrival]) -> dict[str, Drawn]:
        """Each order alone, by the stock pipeline. Outside of a mask are the order's own pixels, which change when the VAE decodes them."""
        drawn = {}
        for name, arrival in orders.items():
            stock, kept = self._stock.draw(arrival.request), kept_pixels(arrival.request)
            pixels = np.where(kept.where[:, :, None], kept.picture, stock.pixels) if kept else stock.pixels
            drawn[name] = Drawn(pixels, stock.latents)
        return drawn


class FamilyEngines:
    """Each engine is opened when it is needed first, and stays open."""

    def __init__(self, checkpoints: Mapping[str, Path], folder: Path) -> None:
        self._checkpoints, self._folder = checkpoints, folder
        self._opened: dict[tuple[str, str], FamilyEngine] = {}
        self._drawn: dict[tuple[str, str], tuple[dict[str, Arrival], dict[str, Drawn]]] = {}
        self._threads = torch.get_num_threads()

    def open(self, name: str, dtype: str = "float32") -> FamilyEngine:
        if (name, dtype) not in self._opened:
            self._opened[name, dtype] = FamilyEngine(name, self._checkpoints, self._folder / f"{name}-{dtype}", dtype)
        return self._opened[name, dtype]

    def draw_case(self, name: str, case: str) -> tuple[dict[str, Arrival], dict[str, Drawn]]:
        """The orders of a case in FP32, and their pictures, which are drawn once."""
        if (name, case) not in self._drawn:
            family = self.open(name)
            orders = CASES[case](family.tiny, family.loras)
            self._drawn[name, case] = orders, family.draw(orders)
        return self._drawn[name, case]

    def close(self) -> None:
        for family in self._opened.values():
            family.engine.close()
        torch.set_num_threads(self._threads)


def open_family_engine(checkpoint: Path, controlnets: Mapping[str, Path], folder: Path, dtype: str) -> DiffusionEngine:
    """With one thread, and without the measuring of rows that pay, which would limit the rows of a call."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name: str(path) for name, path in controlnets.items()}
    settings = ImageSettings(model=str(checkpoint), controlnets=named, dtype=dtype, measure_seconds=0.0, threads=1, hash_weights=False)
    return open_engine(settings, silent_host(folder))
