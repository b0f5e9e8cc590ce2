"""Edits of pictures: the form of OpenAI's clients becomes a command with claims; what is not supported is refused by name."""

import base64
import json
from typing import Any

import pytest

from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from tests.support.picture_files import png
from tests.unit.gateway.conftest import FakeGateway, OpenFakeGateway

Files = list[tuple[str, tuple[str | None, bytes, str]]]
KEYS = "office:" + "k" * 32


def file(field: str, data: bytes = png()) -> tuple[str, tuple[str | None, bytes, str]]:
    return field, ("picture.png", data, "image/png")


@pytest.fixture
def edits(gateway: OpenFakeGateway, claims: ClaimStore, drawn: dict[str, Any]) -> FakeGateway:
    return gateway({"image": drawn}, store=claims, api_keys=KEYS)


async def post(gateway: FakeGateway, files: Files, **fields: str) -> Any:
    headers = {"Authorization": f"Bearer {'k' * 32}"}
    return await gateway.http.post("/v1/images/edits", files=files, data={"prompt": "fox"} | fields, headers=headers)


async def test_form_becomes_a_command_with_claims_of_the_caller(edits: FakeGateway, claims: ClaimStore) -> None:
    mask = png("L")
    fields = {"n": "2", "size": "128x64", "output_format": "webp", "output_compression": "80", "seed": "5", "strength": "0.5"}
    loras = json.dumps([{"name": "ink", "scale": 0.5}])
    await post(
        edits, [file("image[]"), file("mask", mask)], **fields, loras=loras, quality="low", input_fidelity="low", response_format="url"
    )
    (command,) = edits.publisher.commands("image")
    edit = command.pop("edit")
    assert command == {
        "prompt": "fox",
        "count": 2,
        "width": 128,
        "height": 64,
        "output_format": "webp",
        "quality": 80,
        "seed": 5,
        "steps": 20,
        "loras": [{"name": "ink", "scale": 0.5, "required": True}],
    }
    assert edit["strength"] == 0.5
    for name, data in (("image", png()), ("mask", mask)):
        assert await claims.read(Claim.model_validate(edit[name]), tenant="office") == data
        assert "/tenants/office/" in edit[name]["uri"]


async def test_edit_without_mask_and_size_leaves_both_to_the_picture(gateway: OpenFakeGateway, claims: ClaimStore, drawn: Any) -> None:
    edits = gateway({"image": drawn}, store=claims)
    response = await post(edits, [file("image")], size="auto")
    assert (response.status_code, response.json()["size"]) == (200, "60x40")
    assert base64.b64decode(response.json()["data"][0]["b64_json"]) == png()
    (command,) = edits.publisher.commands("image")
    assert command.keys() == {"prompt", "count", "edit"}
    assert command["edit"].keys() == {"image"}


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ([("seed", (None, b"1", ""))], {}, "image"),
        ([file("mask")], {}, "image"),
        ([file("image[]"), file("image[]")], {}, "image"),
        ([file("image"), file("mask"), file("mask")], {}, "mask"),
        ([file("image"), file("markup")], {}, "markup"),
        ([file("image", b"%PDF-1.7")], {}, "image"),
        ([file("image"), file("mask", b"")], {}, "mask"),
        ([file("image")], {"mask": "base64"}, "mask"),
        ([file("image")], {"prompt": ""}, "prompt"),
        ([file("image")], {"n": "11"}, "n"),
        ([file("image")], {"input_fidelity": "high"}, "input_fidelity"),
        ([file("image")], {"background": "transparent"}, "background"),
        ([file("image")], {"complexity": "low"}, "complexity"),
        ([file("image")], {"strength": "1.5"}, "strength"),
        ([file("image")], {"stream": "true", "n": "2"}, "n"),
        ([file("image")], {"loras": "ink"}, "loras"),
        ([file("image")], {"loras": json.dumps([{"name": "x" * (20 << 10)}])}, "loras"),
        ([file("image")], {"loras[][name]": "ink"}, "loras"),
        ([file("image")], {"control": "x"}, "control"),
        ([file("image")], {"size": "4096x4096"}, "size"),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(edits: FakeGateway, files: Files, fields: dict[str, str], param: str) -> None:
    response = await post(edits, files, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert edits.publisher.messages == []


async def test_field_that_is_given_twice_is_refused(edits: FakeGateway) -> None:
    response = await post(edits, [file("image"), ("seed", (None, b"1", "")), ("seed", (None, b"2", ""))])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "seed")


async def test_large_file_is_refused(gateway: OpenFakeGateway, claims: ClaimStore) -> None:
    edits = gateway({}, store=claims, max_upload_bytes=1000)
    for field in ("image", "mask"):
        files = [file("image"), file("mask")] if field == "mask" else [file("image")]
        files[-1] = file(field, png() + b"x" * 1000)
        response = await post(edits, files)
        assert (response.status_code, response.json()["error"]["param"]) == (413, field)
        assert "MAX_UPLOAD_BYTES" in response.json()["error"]["message"]


async def test_images_that_fit_no_response_are_refused_before_a_file_is_stored(gateway: OpenFakeGateway, claims: ClaimStore) -> None:
    """The size `auto` counts as 2048x2048: so large may the picture be."""
    for memory, count, held in ((200, "3", "at most 2 images"), (40, "1", "no image")):
        edits = gateway({}, store=claims, file_memory_bytes=memory << 20, max_file_bytes=1 << 20)
        response = await post(edits, [file("image")], n=count)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
        assert f"holds {held} of 2048x2048: ask for fewer, for a smaller size" in response.json()["error"]["message"]


async def test_body_that_is_no_form_is_refused(edits: FakeGateway) -> None:
    headers = {"Authorization": f"Bearer {'k' * 32}"}
    response = await edits.http.post("/v1/images/edits", json={"prompt": "fox"}, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "media_type_unsupported")


async def test_gateway_without_a_store_takes_no_edit(gateway: OpenFakeGateway) -> None:
    response = await post(gateway({}), [file("image")])
    assert (response.status_code, response.json()["error"]["code"]) == (503, "store_missing")
