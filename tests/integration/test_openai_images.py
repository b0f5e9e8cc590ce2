"""Image generation through the official OpenAI client, on a real broker and store with a fake image actor."""

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from actors.ledger import ACTORS
from bus.settings import BusSettings
from tests.support.broker_client import StartWorker
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.live_gateway import live_gateway, official_client


@pytest.fixture
async def client(bus_settings: BusSettings, store_folder: Path, purged_queues: None) -> AsyncIterator[AsyncOpenAI]:
    async with live_gateway(bus_settings, store_folder, request_seconds=20) as url, official_client(url) as client:
        yield client


def picture(b64: str | None) -> Image.Image:
    assert b64
    return Image.open(io.BytesIO(base64.b64decode(b64)))


async def test_images_are_returned_as_base64_in_order(client: AsyncOpenAI, start_worker: StartWorker) -> None:
    """Six images are two commands."""
    async with start_worker(FAKE_IMAGE_ACTOR):
        answer = await client.images.generate(
            prompt="a fox", n=6, size="128x64", response_format="b64_json", model="image", extra_body={"seed": 40}
        )  # fmt: skip
    assert answer.data is not None
    assert [picture(image.b64_json).size for image in answer.data] == [(128, 64)] * 6
    assert answer.size == "128x64"
    assert answer.model_extra is not None
    assert answer.model_extra["seeds"] == [40, 41, 42, 43, 44, 45]


async def test_image_url_serves_image(client: AsyncOpenAI, start_worker: StartWorker) -> None:
    """The jobs API serves it, since the store is a folder."""
    async with start_worker(FAKE_IMAGE_ACTOR, *ACTORS):
        answer = await client.images.generate(prompt="a fox", size="64x64", response_format="url")
        assert answer.data is not None
        assert answer.data[0].b64_json is None
        assert answer.data[0].url
        async with httpx.AsyncClient() as http:
            image = await http.get(answer.data[0].url)
    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(image.content)).size == (64, 64)


@pytest.mark.parametrize(
    ("invalid", "param"),
    [
        ({"size": "100x100"}, "size"),
        ({"size": "wide"}, "size"),
        ({"n": 11}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"output_format": "svg"}, "output_format"),
    ],
)
async def test_invalid_request_is_400_with_field(
    client: AsyncOpenAI, start_worker: StartWorker, invalid: dict[str, object], param: str
) -> None:
    async with start_worker(FAKE_IMAGE_ACTOR):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.images.generate(**{"prompt": "a fox"} | invalid)  # type: ignore[call-overload]
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


async def test_actor_fault_code_is_returned(client: AsyncOpenAI, start_worker: StartWorker) -> None:
    async with start_worker(FAKE_IMAGE_ACTOR):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.images.generate(prompt="this fails")
    assert (raised.value.code, raised.value.body) == (
        "lora_missing",
        {"message": "no such weights", "type": "invalid_request_error", "param": "loras", "code": "lora_missing"},
    )


@pytest.mark.usefixtures("purged_queues")
async def test_missing_actor_returns_deadline_error(bus_settings: BusSettings, store_folder: Path) -> None:
    """A server error, which clients retry."""
    async with live_gateway(bus_settings, store_folder, request_seconds=0.5) as url, official_client(url) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.images.generate(prompt="a fox")
    assert (raised.value.status_code, raised.value.code) == (504, "no_reply_in_time")


async def test_unknown_key_is_authentication_error(bus_settings: BusSettings, store_folder: Path) -> None:
    keys = f"shop:{'k' * 32}"
    async with live_gateway(bus_settings, store_folder, api_keys=keys) as url, official_client(url, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.images.generate(prompt="a fox")
    assert raised.value.code == "invalid_api_key"
