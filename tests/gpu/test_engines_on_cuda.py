"""The engines on a CUDA device: the same pictures as on the CPU, LoRA, half precision, and answers of the language engine."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.language.requests import VlmOptions, VlmRequest, VlmResponse
from actors.engines.language.vision_model import VlmEngine, open_engine
from actors.engines.process.gpu import DeviceMeter
from actors.engines.process.protocol import Finished
from actors.vision.prompts import build_consult_prompt
from tests.support.engine_fixture import draw_images, lora_file, max_pixel_difference, open_image_engine, silent_host

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
DEVICE = "cuda"
TinyModels = dict[str, Path]


def gradient_png() -> bytes:
    with io.BytesIO() as file:
        Pillow.linear_gradient("L").convert("RGB").resize((64, 48)).save(file, "PNG")
        return file.getvalue()


def make_request(seed: int = 1, **changes: Any) -> DiffusionRequest:
    return DiffusionRequest(**{"prompt": "a lighthouse", "seed": seed, "width": 64, "height": 64, "steps": 8, **changes})


def draw(models: TinyModels, folder: Path, requests: dict[int, DiffusionRequest], **changes: Any) -> dict[int, list[Any]]:
    engine = open_image_engine(models, folder, **changes)
    try:
        return draw_images(engine, requests)
    finally:
        engine.close()


def mean_difference(images: list[Any], other_images: list[Any]) -> float:
    """The mean difference of the channel values, of 255."""
    return float(np.mean([np.abs(image - other).mean() for image, other in zip(images, other_images, strict=True)]))


def test_pictures_and_loras_are_those_of_the_cpu(tiny_models: TinyModels, tmp_path: Path) -> None:
    """In single precision, in one batch with and without a LoRA; the noise comes from the CPU on every device."""
    requests = {1: make_request(), 2: make_request(lora=lora_file(tiny_models, "a")), 3: make_request(4, count=2)}
    on_cuda = draw(tiny_models, tmp_path / "cuda", requests, device=DEVICE, dtype="float32")
    on_cpu = draw(tiny_models, tmp_path / "cpu", requests, device="cpu")
    assert max(mean_difference(on_cuda[number], on_cpu[number]) for number in requests) < 1
    assert max_pixel_difference(on_cuda[1], on_cuda[2]) > 8, "the LoRA changes the picture"


def test_half_precision_is_the_default_and_a_batch_draws_what_one_order_draws(tiny_models: TinyModels, tmp_path: Path) -> None:
    requests = {number: make_request(number, steps=5 + number) for number in range(1, 7)}
    engine = open_image_engine(tiny_models, tmp_path / "shm", device=DEVICE)
    try:
        assert engine.dtype == "float16"
        together = draw_images(engine, requests)
        alone = draw_images(engine, {number: replace(request, deterministic=True) for number, request in requests.items()})
    finally:
        engine.close()
    assert max(mean_difference(together[number], alone[number]) for number in requests) < 2


def test_memory_of_the_device_is_measured(tiny_models: TinyModels, tmp_path: Path) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "shm", device=DEVICE)
    try:
        draw_images(engine, {1: make_request()})
        gauges = DeviceMeter("cuda:0").gauges()
    finally:
        engine.close()
    assert 0 < gauges["device_memory_used_bytes"] <= gauges["device_memory_bytes"]


@pytest.mark.parametrize("picture", [None, gradient_png()], ids=["text", "picture"])
def test_language_engine_answers_as_on_the_cpu(tiny_models: TinyModels, picture: bytes | None) -> None:
    request = VlmRequest(build_consult_prompt("Why is my skin dry?"), (picture,), 24, 1.1)
    answers = [answer_on(tiny_models["tiny-llava"], device, request) for device in (DEVICE, "cpu")]
    assert answers[0].text == answers[1].text


def answer_on(folder: Path, device: str, request: VlmRequest) -> VlmResponse:
    options = VlmOptions(str(folder), device=device, dtype="float32", quantization="none", window_seconds=0)
    engine: VlmEngine = open_engine(options, silent_host(folder))
    engine.submit(1, request)
    while engine.idle_seconds() is not None:
        for event in engine.tick():
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("the engine went idle without an answer")
