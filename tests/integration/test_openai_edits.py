"""Edits and streams by the official OpenAI client, through gateway, broker, image actor and a real engine with a tiny checkpoint."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from actors import image
from actors.engines.diffusion.tiny_families import write_tiny_family
from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_lora
from bus.settings import BusSettings
from tests.support.broker_client import StartWorker
from tests.support.live_gateway import live_gateway, official_client
from tests.support.picture_files import encode, exif, orientation

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]

FAST = {"seed": 5, "steps": 4}
SIDE = 64


@pytest.fixture
async def client(
    bus_settings: BusSettings,
    store_folder: Path,
    purged_queues: None,
    start_worker: StartWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[AsyncOpenAI]:
    for name, folder in (("tiny-sd15", "sd"), ("tiny-sd15-controlnet", "canny")):
        await asyncio.to_thread(write_tiny_family, name, tmp_path / folder)
    await asyncio.to_thread(write_tiny_lora, tmp_path / "ink.safetensors", tmp_path / "sd", seed=1)
    environment = {
        "IMAGE_MODEL": str(tmp_path / "sd"),
        "IMAGE_LORAS": json.dumps({"ink": (tmp_path / "ink.safetensors").as_uri()}),
        "IMAGE_CONTROLNETS": json.dumps({"canny": str(tmp_path / "canny")}),
        "ASSET_ROOTS": str(tmp_path),
        "IMAGE_DEVICE": "cpu",
        "IMAGE_THREADS": "1",
        "IMAGE_LOCAL_CACHE": str(tmp_path / "cache"),
        "IMAGE_PREVIEW_SECONDS": "0.0001",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with (
        start_worker(image.build_actor()),
        live_gateway(bus_settings, store_folder, request_seconds=500) as url,
        official_client(url, timeout=500) as client,
    ):
        yield client


def pictures(answer: Any) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data.b64_json))) for data in answer.data]


def gradient(width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.merge("RGB", [Image.linear_gradient("L").resize((width, height)).rotate(turn) for turn in (0, 90, 180)])


def transparent_right_half(width: int = SIDE, height: int = SIDE) -> bytes:
    mask = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (width // 2, 0, width, height))
    return encode(mask, "PNG")


async def test_official_client_edits(client: AsyncOpenAI) -> None:
    source = gradient()
    whole, again, with_lora = [
        pictures(await client.images.edit(image=encode(source, "PNG"), prompt="fog", extra_body=FAST | extra))[0]
        for extra in ({"strength": 0.5}, {"strength": 0.5}, {"strength": 0.5, "loras": json.dumps([{"name": "ink", "scale": 2}])})
    ]
    assert whole.size == source.size
    assert whole.tobytes() == again.tobytes() != source.tobytes()
    assert with_lora.tobytes() != whole.tobytes()

    masked = await client.images.edit(
        image=[("a.png", encode(source, "PNG"))], mask=transparent_right_half(), prompt="fog", n=2, output_format="png", extra_body=FAST
    )  # fmt: skip
    left, right = (0, 0, SIDE // 2, SIDE), (SIDE // 2, 0, SIDE, SIDE)
    for picture in pictures(masked):
        assert picture.crop(left).tobytes() == source.crop(left).tobytes(), "what is not drawn anew is unchanged to the bit"
        assert picture.crop(right).tobytes() != source.crop(right).tobytes()
    assert masked.model_extra is not None
    assert masked.model_extra["seeds"] == [5, 6]

    cmyk_on_its_side = encode(gradient(128, 64).convert("CMYK"), "JPEG", exif=b"Exif\0\0" + exif(orientation(6)))
    turned = await client.images.edit(
        image=cmyk_on_its_side, prompt="fog", output_format="webp", output_compression=60, size="auto", extra_body=FAST
    )  # fmt: skip
    assert (turned.size, turned.output_format) == ("64x128", "webp")
    assert [(picture.format, picture.size) for picture in pictures(turned)] == [("WEBP", (64, 128))]
    resized = await client.images.edit(image=encode(source, "PNG"), prompt="fog", output_format="jpeg", size="128x64", extra_body=FAST)
    assert [(picture.format, picture.size) for picture in pictures(resized)] == [("JPEG", (128, 64))]

    for request, param, code in (
        ({"mask": transparent_right_half(32, 64)}, "mask", "mask_size_differs"),
        ({"mask": encode(Image.new("L", (SIDE, SIDE)), "PNG")}, "mask", "mask_empty"),
        ({"image": [encode(source, "PNG")] * 2}, "image", "invalid_request"),
        ({"extra_body": FAST | {"strength": 0.1}}, "strength", "strength_too_low"),
        ({"input_fidelity": "high"}, "input_fidelity", "invalid_request"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.images.edit(**{"image": encode(source, "PNG"), "prompt": "fog", "extra_body": FAST} | request)  # type: ignore[call-overload]
        assert (raised.value.param, raised.value.code) == (param, code)


async def test_picture_to_follow_changes_the_image(client: AsyncOpenAI) -> None:
    edges = base64.b64encode(encode(gradient(), "PNG")).decode()
    plain, followed = [
        pictures(await client.images.generate(prompt="fog", size="64x64", extra_body=FAST | extra))[0]
        for extra in ({}, {"control": {"image": f"data:image/png;base64,{edges}", "model": "canny", "scale": 2}})
    ]
    assert plain.tobytes() != followed.tobytes()
    with pytest.raises(openai.BadRequestError) as raised:
        await client.images.generate(prompt="fog", extra_body={"control": {"image": edges, "model": "pose"}})
    assert (raised.value.param, raised.value.code) == ("control", "control_unknown")


async def test_official_client_streams_partial_images(client: AsyncOpenAI) -> None:
    slow = {"seed": 5, "steps": 40}
    generation = await client.images.generate(
        prompt="fog", size="64x64", stream=True, partial_images=2, output_format="webp", extra_body=slow
    )  # fmt: skip
    edit = await client.images.edit(image=encode(gradient(), "PNG"), prompt="fog", stream=True, partial_images=2, extra_body=slow)
    for stream, name, image_format in ((generation, "image_generation", "WEBP"), (edit, "image_edit", "PNG")):
        *partial, completed = [event async for event in stream]  # type: ignore[union-attr]
        assert [event.type for event in partial] == [f"{name}.partial_image"] * 2
        assert [event.partial_image_index for event in partial] == [0, 1]
        assert completed.type == f"{name}.completed"
        files = [Image.open(io.BytesIO(base64.b64decode(event.b64_json))) for event in (*partial, completed)]
        assert [file.format for file in files] == ["JPEG", "JPEG", image_format]
        assert (files[-1].size, completed.size) == ((64, 64), "64x64")
    with pytest.raises(openai.NotFoundError) as raised:
        await client.images.generate(prompt="fog", size="64x64", stream=True, model="unknown-model")
    assert raised.value.param == "model"
