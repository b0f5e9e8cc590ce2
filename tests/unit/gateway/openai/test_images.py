"""Image generation and the list of models."""

import asyncio
import os
from typing import Any, cast

import pytest
from PIL import Image

from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from contracts.fault import Fault
from gateway.openai.image_requests import MAX_BYTES_PER_PIXEL, ImageRequest
from tests.support.fake_broker import Replier, Reply
from tests.support.picture_files import encode
from tests.unit.gateway.conftest import OpenFakeGateway
from tests.unit.gateway.text.test_status import STATUS


@pytest.mark.parametrize(
    ("fields", "commands"),
    [
        ({}, [{"count": 1}]),
        ({"n": None, "model": "image", "size": "auto", "quality": "auto"}, [{"count": 1}]),
        ({"n": 4, "model": "sdxl"}, [{"count": 4, "model": "sdxl"}]),
        ({"n": 9, "seed": 40}, [{"count": 4, "seed": 40}, {"count": 4, "seed": 44}, {"count": 1, "seed": 48}]),
        ({"size": "128x64"}, [{"count": 1, "width": 128, "height": 64}]),
        ({"quality": "hd"}, [{"count": 1, "steps": 75}]),
        ({"quality": "hd", "steps": 5}, [{"count": 1, "steps": 5}]),
        ({"negative_prompt": "blur", "guidance_scale": 7}, [{"count": 1, "negative_prompt": "blur", "guidance_scale": 7.0}]),
        ({"user": "me", "safety_identifier": "x", "moderation": "low", "output_compression": 100}, [{"count": 1}]),
        ({"output_format": "webp"}, [{"count": 1, "output_format": "webp"}]),
        ({"output_format": "jpeg", "output_compression": 0}, [{"count": 1, "output_format": "jpeg", "quality": 1}]),
        ({"stream": True, "partial_images": 2, "true_cfg_scale": 2}, [{"count": 1, "preview": True, "true_cfg_scale": 2.0}]),
        ({"loras": [{"name": "ink", "scale": 0.5}]}, [{"count": 1, "loras": [{"name": "ink", "scale": 0.5, "required": True}]}]),
    ],
)
def test_request_becomes_commands(fields: dict[str, Any], commands: list[dict[str, Any]]) -> None:
    assert list(ImageRequest.model_validate({"prompt": "fox"} | fields).commands()) == [{"prompt": "fox"} | command for command in commands]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True, "n": 2}, "n"),
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"partial_images": 1}, "partial_images"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "gif"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"style": "vivid"}, "style"),
        ({"size": "4096x4096"}, "size"),
        ({"size": "56x64", "response_format": "url"}, "size"),
        ({"size": "100x100"}, "size"),
        ({"frame_count": 9}, "frame_count"),
        ({"strength": 0.5}, "strength"),
        ({"loras": [{"name": "ink", "weight": 1}]}, "loras.0.weight"),
        ({"loras": [{"scale": 1}]}, "loras.0"),
        ({"control": {"image": "?", "model": "canny"}}, None),
        ({"control": {"image": "eA==", "model": "canny", "uri": "x"}}, "control.uri"),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(gateway: OpenFakeGateway, fields: dict[str, Any], param: str | None) -> None:
    fake_gateway = gateway({"image": generate}, store=cast("ClaimStore", FakeStore()))
    response = await fake_gateway.http.post("/v1/images/generations", json={"prompt": "fox"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert fake_gateway.publisher.messages == []


async def test_picture_to_follow_is_stored(gateway: OpenFakeGateway, claims: ClaimStore) -> None:
    fake_gateway = gateway({"image": generate}, store=claims)
    body = {"prompt": "fox", "control": {"image": "data:image/png;base64,iVBORw0KGgo=", "model": "canny", "scale": 0.5}}
    response = await fake_gateway.http.post("/v1/images/generations", json=body | {"response_format": "url"})
    (command,) = fake_gateway.publisher.commands("image")
    control = command["control"]
    assert (control["model"], control["scale"], control["image"]["media_type"]) == ("canny", 0.5, "image/png")
    assert await claims.read(Claim.model_validate(control["image"]), tenant=None) == b"\x89PNG\r\n\x1a\n"
    assert response.status_code == 500, "the fake image is in another store"


class FakeStore:
    """Reads the file's name; `error`: raised instead."""

    def __init__(self, error: Exception | None = None, base_url: str = "https://cdn") -> None:
        self.error, self.base_url = error, base_url

    async def read(self, claim: Claim, *, tenant: str | None) -> bytes:
        if self.error:
            raise self.error
        return claim.uri.encode()

    async def url(self, claim: Claim, *, tenant: str | None, permanent: bool = False) -> str:
        return f"{self.base_url}/{claim.uri.rpartition('/')[2]}"


def generate(command: dict[str, Any]) -> Reply:
    if command["prompt"] == "fails":
        return Fault(code="lora-missing", message="no such weights", step="image")
    seeds = [command.get("seed", 1) + index for index in range(command["count"])]
    claim = {"sha256": "ab" * 32, "media_type": "image/png", "size": 9, "width": 64, "height": 32}
    images = [claim | {"uri": f"s3://b/{seed}.png"} for seed in seeds]
    return {"images": images, "seeds": seeds, "metadata": METADATA}


METADATA = {"seed": 1, "steps": 1, "guidance_scale": 7.5}


async def test_images_are_returned_in_order(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway({"image": generate}, store=cast("ClaimStore", FakeStore()))
    body = {"prompt": "fox", "n": 5, "seed": 10, "response_format": "url"}
    response = (await fake_gateway.http.post("/v1/images/generations", json=body)).json()
    assert [image["url"] for image in response["data"]] == [f"https://cdn/{seed}.png" for seed in range(10, 15)]
    assert (response["size"], response["seeds"]) == ("64x32", [10, 11, 12, 13, 14])
    assert len(fake_gateway.publisher.commands("image")) == 2


@pytest.mark.parametrize(
    ("prompt", "store", "status", "code"),
    [
        ("fox", None, 503, "store_missing"),
        ("fox", FakeStore(TemporaryError("timeout")), 503, "store_away"),
        ("fox", FakeStore(PermanentError("claim-corrupt", "sha256")), 500, "claim_corrupt"),
        ("fails", FakeStore(), 400, "lora_missing"),
        ("", FakeStore(), 400, "invalid_request"),
    ],
)
async def test_failure_is_openai_error(gateway: OpenFakeGateway, prompt: str, store: FakeStore | None, status: int, code: str) -> None:
    fake_gateway = gateway({"image": generate}, store=cast("ClaimStore", store) if store else None)
    response = await fake_gateway.http.post("/v1/images/generations", json={"prompt": prompt})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("fields", [{"size": "2048x2048", "n": 10}, {"size": "1024x1024", "n": 10}, {"n": 10, "response_format": "url"}])
async def test_images_that_fit_no_response_are_refused_before_any_work(gateway: OpenFakeGateway, fields: dict[str, Any]) -> None:
    """A refusal names how many would fit; `url` needs no memory. GATEWAY_MAX_FILE_BYTES decides the least memory for files."""
    fake_gateway = gateway({"image": generate}, store=cast("ClaimStore", FakeStore()), file_memory_bytes=200 << 20, max_file_bytes=1 << 20)
    response = await fake_gateway.http.post("/v1/images/generations", json={"prompt": "fox"} | fields)
    if fields.get("size") == "2048x2048":
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "too_many_pixels", "n")
        assert "at most 2 images of 2048x2048" in error["message"]
        assert fake_gateway.publisher.messages == []
    else:
        assert (response.status_code, len(response.json()["data"])) == (200, 10)


def test_memory_that_an_image_is_taken_to_need_holds_noise_in_the_best_quality() -> None:
    noise = Image.frombytes("RGB", (128, 128), os.urandom(128 * 128 * 3))
    for image_format, options in (("png", {}), ("jpeg", {"quality": 100, "subsampling": 0}), ("webp", {"quality": 100})):
        size = len(encode(noise, image_format, **options))
        assert 0.5 < size / (128 * 128 * MAX_BYTES_PER_PIXEL[image_format]) <= 1, image_format  # type: ignore[index]


async def test_images_wait_for_memory_as_long_as_their_request(gateway: OpenFakeGateway) -> None:
    """Once for all of a request: with one reservation for each image, two requests could wait for each other."""
    fake_gateway = gateway({"image": generate}, store=cast("ClaimStore", FakeStore()))
    budget = fake_gateway.services.file_memory
    held = await budget.reserve(None, budget.share_bytes)
    post = fake_gateway.http.post("/v1/images/generations", json={"prompt": "fox", "n": 9})
    waiting = asyncio.create_task(post)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert len(fake_gateway.publisher.commands("image")) == 3
    held.release()
    assert (await asyncio.wait_for(waiting, 5)).status_code == 200
    assert budget.held_bytes == 0


async def test_url_of_folder_store_is_in_jobs_api(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway({"image": generate}, store=cast("ClaimStore", FakeStore(base_url="file:///store")), question_seconds=0.05)
    response = (await fake_gateway.http.post("/v1/images/generations", json={"prompt": "fox", "response_format": "url"})).json()
    job_id = fake_gateway.publisher.messages[0].job_id
    assert response["data"][0]["url"] == f"http://localhost/jobs/{job_id}/files/1.png"


@pytest.mark.parametrize(
    ("replies", "models"),
    [
        ({}, []),
        ({"image": generate}, ["image"]),
        ({"text.status": STATUS | {"lora_adapters": ["bistro"]}}, ["tiny", "bistro"]),
        ({"text.status": STATUS, "image": generate}, ["tiny", "image"]),
    ],
)
async def test_served_models_are_listed(gateway: OpenFakeGateway, replies: dict[str, Replier], models: list[str]) -> None:
    http = gateway(replies).http
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == models
    for model in models:
        assert (await http.get(f"/v1/models/{model}")).json()["id"] == model
    unknown = await http.get("/v1/models/gpt-9")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_unavailable_broker_is_503_with_retry_after(gateway: OpenFakeGateway) -> None:
    """In OpenAI's format; it was a 500, which the client library does not retry in time."""
    fake_gateway = gateway({}, store=cast("ClaimStore", FakeStore()))
    fake_gateway.publisher.connected = False
    response = await fake_gateway.http.post("/v1/images/generations", json={"prompt": "fox"})
    assert (response.status_code, response.headers.get("retry-after")) == (503, "5")
    assert response.json()["error"]["type"] == "server_error"
