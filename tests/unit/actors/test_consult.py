"""The pictures of a question: each that was sent is read, in the order in which the question names them."""

import base64
import io
from typing import Any

import pytest
from PIL import Image

from actors.consult import load_images
from actors.vision.image_loader import ImageLoader
from actors.vision.settings import VisionSettings
from bus.storage.claim_store import ClaimStore
from contracts.consult import Consult


def png(color: str) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (64, 64), color).save(file, "PNG")
        return file.getvalue()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"image": "red"}, ["red"]),
        ({"picture": "red"}, ["red"]),
        ({"image": "blue", "picture": "red"}, ["red"]),
        ({"image": "red", "pictures": ["green", "blue"]}, ["red", "green", "blue"]),
        ({"picture": "red", "pictures": ["green"]}, ["red", "green"]),
        ({"image": "blue", "picture": "red", "pictures": ["green"]}, ["red", "green"]),
    ],
)
async def test_pictures_are_read_in_their_order(claims: ClaimStore, sent: dict[str, Any], expected: list[str]) -> None:
    async def claim(color: str) -> dict[str, Any]:
        return (await claims.write(png(color), tenant=None, media_type="image/png")).model_dump()

    fields: dict[str, Any] = {"pictures": [await claim(color) for color in sent.get("pictures", [])]}
    if "picture" in sent:
        fields["picture"] = await claim(sent["picture"])
    if "image" in sent:
        fields["image"] = base64.b64encode(png(sent["image"])).decode()
    images = await load_images(Consult.model_validate(fields), None, ImageLoader(claims, VisionSettings()))
    colors = [Image.open(io.BytesIO(data)).convert("RGB").getpixel((9, 9)) for data in images]
    assert colors == [Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in expected]
