"""The pictures of an order: from any format to RGB, masks in both of their meanings, and what is refused with a cause."""

import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw

from actors.engines.diffusion.input_pictures import PictureReader
from actors.engines.diffusion.requests import EditSource, InputPicture
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from contracts.image import Control, Edit
from tests.support.hostile_files import hostile_pictures
from tests.support.picture_files import chunk, encode, exif, jpeg, orientation, plain, png

SIDE = (60, 40)
RED = (200, 30, 30)


@pytest.fixture
def reader(claims: ClaimStore) -> PictureReader:
    return PictureReader(claims, ImageSettings())


async def store(claims: ClaimStore, data: bytes, tenant: str | None = None) -> Claim:
    return await claims.write(data, tenant=tenant, media_type="image/png")


async def read_edit(
    reader: PictureReader, claims: ClaimStore, image: bytes, mask: bytes | None = None, strength: float = 0.8
) -> EditSource:
    edit = Edit(image=await store(claims, image), mask=await store(claims, mask) if mask else None, strength=strength)
    source = await reader.read_edit(edit, None)
    assert source
    return source


def pillow(picture: InputPicture) -> Image.Image:
    return Image.frombytes(picture.mode, (picture.width, picture.height), picture.pixels)


def mask_png(mode: str, background: object, drawn: object, size: tuple[int, int] = SIDE) -> bytes:
    """A mask whose rectangle from (10, 5) to (29, 19) is `drawn`."""
    mask = Image.new(mode, size, background)  # type: ignore[arg-type]
    ImageDraw.Draw(mask).rectangle((10, 5, 29, 19), fill=drawn)  # type: ignore[arg-type]
    return encode(mask, "PNG")


def sixteen_bit_png(level: int) -> bytes:
    """Grey of 16 bits a pixel, which Pillow does not write from colours."""
    width, height = SIDE
    rows = (b"\0" + struct.pack(">H", level) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def half_transparent_png() -> bytes:
    picture = Image.new("RGBA", SIDE, (*RED, 0))
    picture.paste((*RED, 255), (0, 0, 30, 40))
    return encode(picture, "PNG")


@pytest.mark.parametrize(
    ("data", "color", "tolerance"),
    [
        (png(), RED, 0),
        (jpeg(), RED, 3),
        (encode(plain(), "WEBP", lossless=True), RED, 0),
        (encode(plain().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), RED, 0),
        (encode(plain("CMYK"), "JPEG", quality=95), RED, 8),
        (sixteen_bit_png(0x8080), (128, 128, 128), 1),
        (png("L"), (81, 81, 81), 1),
    ],
    ids=["png", "jpeg", "webp", "palette", "cmyk", "16-bit", "grey"],
)
async def test_picture_of_any_format_becomes_rgb(
    reader: PictureReader, claims: ClaimStore, data: bytes, color: tuple[int, int, int], tolerance: int
) -> None:
    image = (await read_edit(reader, claims, data)).image
    assert (image.mode, image.width, image.height, len(image.pixels)) == ("RGB", *SIDE, 60 * 40 * 3)
    middle = pillow(image).getpixel((30, 20))
    assert isinstance(middle, tuple)
    assert max(abs(seen - expected) for seen, expected in zip(middle, color, strict=True)) <= tolerance


async def test_transparent_pixels_of_a_picture_are_white(reader: PictureReader, claims: ClaimStore) -> None:
    """Not the hidden colour behind them."""
    image = pillow((await read_edit(reader, claims, half_transparent_png())).image)
    assert (image.getpixel((5, 5)), image.getpixel((55, 5))) == (RED, (255, 255, 255))


async def test_picture_is_rotated_as_its_exif_says_and_the_mask_is_of_that_size(reader: PictureReader, claims: ClaimStore) -> None:
    rotated = encode(plain(), "JPEG", exif=b"Exif\0\0" + exif(orientation(6)))
    source = await read_edit(reader, claims, rotated, mask_png("L", 0, 255, (40, 60)))
    assert source.mask
    assert (source.image.width, source.image.height, source.mask.width, source.mask.height) == (40, 60, 40, 60)
    with pytest.raises(PermanentError, match=r"60×40, its picture 40×60 \(rotated") as raised:
        await read_edit(reader, claims, rotated, mask_png("L", 0, 255))
    assert raised.value.code == "mask-size-differs"


@pytest.mark.parametrize(
    "mask",
    [
        mask_png("L", 0, 255),
        mask_png("1", 0, 1),
        mask_png("RGB", (0, 0, 0), (255, 255, 255)),
        mask_png("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)),
        mask_png("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
        mask_png("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)),
        mask_png("LA", (255, 255), (255, 0)),
    ],
    ids=["grey", "1-bit", "rgb", "opaque", "transparent-black", "transparent-white", "grey-alpha"],
)
async def test_white_is_drawn_anew_and_in_a_mask_with_transparency_the_transparent(
    reader: PictureReader, claims: ClaimStore, mask: bytes
) -> None:
    """As OpenAI's clients send masks, and as painters of masks save them."""
    source = await read_edit(reader, claims, png(), mask, strength=0.4)
    assert source.mask
    assert source.strength == 0.4
    levels = pillow(source.mask)
    drawn = {(x, y) for x in range(60) for y in range(40) if int(levels.getpixel((x, y))) >= 128}  # type: ignore[arg-type]
    assert drawn == {(x, y) for x in range(10, 30) for y in range(5, 20)}


@pytest.mark.parametrize("mask", [mask_png("L", 0, 0), mask_png("RGBA", (0, 0, 0, 255), (0, 0, 0, 200)), mask_png("L", 127, 127)])
async def test_mask_without_a_pixel_to_draw_is_refused(reader: PictureReader, claims: ClaimStore, mask: bytes) -> None:
    with pytest.raises(PermanentError, match="paint those white, or make them transparent") as raised:
        await read_edit(reader, claims, png(), mask)
    assert raised.value.code == "mask-empty"


async def test_large_picture_and_its_mask_are_scaled_down_together(reader: PictureReader, claims: ClaimStore) -> None:
    size = (4096, 1000)
    mask = Image.new("L", size)
    mask.paste(255, (2048, 0, 4096, 1000))
    source = await read_edit(reader, claims, encode(Image.new("RGB", size, RED), "PNG"), encode(mask, "PNG"))
    assert source.mask
    assert (source.image.width, source.image.height, source.mask.width, source.mask.height) == (2048, 500, 2048, 500)
    levels = pillow(source.mask)
    assert [levels.getpixel((x, 250)) for x in (0, 1023, 1024, 2047)] == [0, 0, 255, 255]


@pytest.mark.parametrize("size", [(4098, 600), (60_000, 8)])
async def test_thin_line_stays_in_a_mask_that_is_scaled_down(reader: PictureReader, claims: ClaimStore, size: tuple[int, int]) -> None:
    """Of one pixel: its place in the small mask, and no other, is drawn anew."""
    mask = Image.new("L", size)
    mask.putpixel((3001, 3), 130)
    source = await read_edit(reader, claims, encode(Image.new("RGB", size, RED), "PNG"), encode(mask, "PNG"))
    assert source.mask
    levels = pillow(source.mask)
    x, y = int(3001.5 * levels.width / size[0]), int(3.5 * levels.height / size[1])
    assert (levels.getbbox(), levels.getpixel((x, y))) == ((x, y, x + 1, y + 1), 255)


async def test_picture_to_follow_is_read_as_one_to_start_from(reader: PictureReader, claims: ClaimStore) -> None:
    control = Control(image=await store(claims, half_transparent_png()), model="canny", scale=0.5)
    source = await reader.read_control(control, None)
    assert source
    assert (source.model, source.scale, source.image.mode) == ("canny", 0.5, "RGB")
    assert pillow(source.image).getpixel((55, 5)) == (255, 255, 255)


async def test_order_without_pictures_reads_none(reader: PictureReader) -> None:
    assert (await reader.read_edit(None, None), await reader.read_control(None, None)) == (None, None)


async def test_sizes_are_limited(claims: ClaimStore) -> None:
    """The bytes before they are read: here the file does not even exist. The pixels before they are decoded."""
    reader = PictureReader(claims, ImageSettings(input_max_bytes=1000, input_max_pixels=60 * 40 - 1))
    heavy = Claim(uri=(await store(claims, b"x")).uri + "-missing", sha256="0" * 64, media_type="image/png", size=1001)
    for read in (reader.read_edit(Edit(image=heavy), None), reader.read_control(Control(image=heavy, model="canny"), None)):
        with pytest.raises(PermanentError, match="IMAGE_INPUT_MAX_BYTES") as raised:
            await read
        assert raised.value.code == "image-too-large"
    with pytest.raises(PermanentError, match="60×40") as raised:
        await read_edit(reader, claims, png())
    assert raised.value.code == "image-too-large"


READS: list[Callable[[PictureReader, Claim, Claim], object]] = [
    lambda reader, own, foreign: reader.read_edit(Edit(image=foreign), "office"),
    lambda reader, own, foreign: reader.read_edit(Edit(image=own, mask=foreign), "office"),
    lambda reader, own, foreign: reader.read_control(Control(image=foreign, model="canny"), "office"),
]


@pytest.mark.parametrize("read", READS, ids=["image", "mask", "control"])
async def test_claim_of_another_tenant_is_refused(
    reader: PictureReader, claims: ClaimStore, read: Callable[[PictureReader, Claim, Claim], object]
) -> None:
    own, foreign = await store(claims, png(), "office"), await store(claims, mask_png("L", 0, 255), "shop")
    with pytest.raises(PermanentError) as raised:
        await read(reader, own, foreign)  # type: ignore[misc]
    assert raised.value.code == "claim-refused"


async def test_hostile_file_is_refused_with_a_cause(reader: PictureReader, claims: ClaimStore) -> None:
    """Some are odd and yet decoded; none gets further than its decoder."""
    codes = set()
    for data in hostile_pictures():
        try:
            await read_edit(reader, claims, data)
        except PermanentError as error:
            codes.add(error.code)
    assert codes == {"image-unreadable", "image-too-large", "image-too-costly"}
