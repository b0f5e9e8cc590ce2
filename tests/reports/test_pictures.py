"""Pictures as people's phones, programs and browsers send them: the pixels count, metadata are bounded and forgiven.

The reports are public ones, in our words; the head of each test names its report.
"""

import base64
import io
import random
import re
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image, ImageChops

from actors.attachments.image_preparation import prepare_image
from actors.imaging.image_decoding import DecodedImage, decode_image
from actors.settings import AttachmentSettings
from actors.vision.image_loader import ImageLoader
from actors.vision.settings import VisionSettings
from bus.errors import PermanentError
from bus.net.data_urls import parse_base64
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from ops.docgen.settings_catalog import ROOT
from tests.support.decoder_calls import collect_decoders
from tests.support.hostile_patterns import parsed_files
from tests.support.picture_files import (
    COLOR,
    EXIF_HEAD,
    SIZE,
    chunk,
    encode,
    exif,
    jpeg,
    jpeg_in_three_scans,
    orientation,
    plain,
    png,
    srgb_profile,
    wide_profile,
    with_chunk,
    with_segment,
)

EXIF, MPF, PHOTOSHOP, ADOBE = 0xE1, 0xE2, 0xED, 0xEE
MAX_PIXELS = 25_000_000
TURNED = (SIZE[1], SIZE[0])
ZERO_RATIO = struct.pack("<HHII", 0x11A, 5, 1, 200)
BOMB = zlib.compress(bytes(64 << 20))


@pytest.fixture
async def claims(tmp_path: Path) -> AsyncIterator[ClaimStore]:
    async with open_claim_store(StoreSettings(store_url=tmp_path.as_uri())) as store:
        yield store


def decode(data: bytes) -> DecodedImage:
    return decode_image(data, MAX_PIXELS)


def distance(picture: Image.Image, color: tuple[int, int, int]) -> int:
    """The most levels by which a channel of any pixel differs from the colour."""
    differences = ImageChops.difference(picture.convert("RGB"), Image.new("RGB", picture.size, color))
    return max(high for _, high in differences.getextrema())  # type: ignore[misc]


def with_exif(payload: bytes) -> bytes:
    return with_segment(jpeg(), EXIF, payload)


def raw_text(keyword: bytes, body: bytes, kind: bytes = b"tEXt") -> bytes:
    return with_chunk(png(), kind, keyword + b"\0" + body)


def animated(image_format: str) -> bytes:
    return encode(plain(), image_format, save_all=True, append_images=[Image.new("RGB", SIZE, "blue")])


DAMAGED_METADATA = {
    "Pillow #8348: the head of EXIF twice": (with_exif(EXIF_HEAD + EXIF_HEAD + exif(orientation(6))), TURNED),
    "AUTOMATIC1111 #9078: the head as Python's text": (with_exif(EXIF_HEAD + b"b'Exif\\x00\\x00II*"), SIZE),
    "EXIF of another byte order": (with_exif(EXIF_HEAD + exif(orientation(6, ">"), order=">")), TURNED),
    "EXIF without content": (with_exif(EXIF_HEAD), SIZE),
    "EXIF cut short": (with_exif(EXIF_HEAD + exif(orientation(6))[:14]), SIZE),
    "Pillow #8605: a ratio of 0/0": (with_exif(EXIF_HEAD + exif(orientation(6), ZERO_RATIO) + bytes(300)), TURNED),
    "orientation as text": (with_exif(EXIF_HEAD + exif(struct.pack("<HHI4s", 0x112, 2, 2, b"6\0\0\0"))), SIZE),
    "orientation 0": (with_exif(EXIF_HEAD + exif(orientation(0))), SIZE),
    "orientation 9": (with_exif(EXIF_HEAD + exif(orientation(9))), SIZE),
    "orientation as a long number": (with_exif(EXIF_HEAD + exif(struct.pack("<HHII", 0x112, 4, 1, 6))), TURNED),
    "Pillow #4215: an entry without a value": (with_exif(EXIF_HEAD + exif(struct.pack("<HHII", 0x112, 3, 0, 0))), SIZE),
    "Pillow #7879: XMP first, and no EXIF": (with_segment(jpeg(), EXIF, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"), SIZE),
    "segment that says less than it has": (with_segment(jpeg(), EXIF, EXIF_HEAD + exif(orientation(6)), 10), SIZE),
    "segment that ends behind the file": (with_segment(jpeg(), EXIF, EXIF_HEAD + b"II*", 0xFFFF), SIZE),
    "segment that covers what follows it": (with_segment(jpeg(), EXIF, EXIF_HEAD + b"II*", 500), SIZE),
    "MPF that is damaged": (with_segment(jpeg(), MPF, b"MPF\0II*\0\xff\xff\xff\xff"), SIZE),
    "Photoshop's resources that are damaged": (with_segment(jpeg(), PHOTOSHOP, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff"), SIZE),
    "JPEG with a profile cut short": (jpeg(icc_profile=srgb_profile()[:200]), SIZE),
    "JPEG with half of a profile in two parts": (with_segment(jpeg(), MPF, b"ICC_PROFILE\0\1\2" + srgb_profile()), SIZE),
    "Pillow #5528: eXIf that is no EXIF": (with_chunk(png(), b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"), SIZE),
    "eXIf of a sound PNG": (with_chunk(png(), b"eXIf", exif(orientation(6))), TURNED),
    "PNG with EXIF as hexadecimal text": (raw_text(b"Raw profile type exif", b"\nexif\n 8\n4578696600zz"), SIZE),
    "wrong checksum of a text": (with_chunk(png(), b"tEXt", b"a\0b", checksum=0), SIZE),
    "wrong checksum of a transparency": (with_chunk(png(), b"tRNS", bytes(6), checksum=0), SIZE),
    "transparency of another length": (with_chunk(png(), b"tRNS", b"\0"), SIZE),
    "resolution that is too short": (with_chunk(png(), b"pHYs", b"\0"), SIZE),
    "text without a keyword's end": (with_chunk(png(), b"zTXt", b"comment"), SIZE),
    "text that is no UTF-8": (raw_text(b"comment", b"\0\0\0\0\xff\xff", b"iTXt"), SIZE),
    "Pillow #8363: compressed text beyond every limit": (raw_text(b"comment", b"\0" + BOMB, b"zTXt"), SIZE),
    "Pillow #2445: a profile beyond every limit": (raw_text(b"icc", b"\0" + BOMB, b"iCCP"), SIZE),
    "Pillow #7817: a profile of an unknown compression": (raw_text(b"ICC Profile", b"\1" + b"damaged", b"iCCP"), SIZE),
    "profile for printing in a PNG": (png(icc_profile=b"\0" * 36 + b"acsp" + b"CMYK" + bytes(100)), SIZE),
    "data behind the end of a PNG": (png() + b"<script>" * 1000, SIZE),
    "PNG without its end": (png()[:-12], SIZE),
    "data behind the end of a JPEG": (jpeg() + bytes(1000), SIZE),
    "motion photo: a video behind the JPEG": (jpeg() + b"ftypmp42" + b"\xff\xda\0\x0c" * 1000, SIZE),
    "WebP with EXIF that is damaged": (encode(plain(), "WEBP", lossless=True, exif=b"Exif\0\0\0\1\2"), SIZE),
    "WebP with EXIF": (encode(plain(), "WEBP", lossless=True, exif=EXIF_HEAD + exif(orientation(6))), TURNED),
    "WebP that ends within its EXIF": (encode(plain(), "WEBP", lossless=True, exif=exif(orientation(6)) + bytes(300))[:-200], TURNED),
}


@pytest.mark.parametrize(("data", "size"), DAMAGED_METADATA.values(), ids=list(DAMAGED_METADATA))
async def test_picture_with_damaged_metadata_is_read_with_all_its_pixels(data: bytes, size: tuple[int, int]) -> None:
    """C35; python-pillow/Pillow #8348, #5528, #8605, #7879, #4215, #8363, #2445, #7817: browsers show each of these. All uses read it."""
    picture = decode(data).pixels
    assert picture.size == size
    assert distance(picture, COLOR) < 6
    with Image.open(io.BytesIO(await prepare_image(data, AttachmentSettings()))) as prepared:
        assert prepared.size == size


GREY = (81, 81, 81)
KINDS = {
    "grey JPEG": (jpeg("L"), "RGB", GREY),
    "CMYK JPEG": (jpeg("CMYK"), "RGB", COLOR),
    "16 bit grey": (encode(Image.new("I;16", SIZE, 40000), "PNG"), "RGB", (156, 156, 156)),
    "1 bit": (encode(Image.new("1", SIZE, 1), "PNG"), "RGB", (255, 255, 255)),
    "grey with transparency": (png("LA"), "RGBA", GREY),
    "palette": (encode(plain().quantize(2), "PNG"), "RGB", COLOR),
    "palette with transparency": (encode(plain().quantize(2), "PNG", transparency=0), "RGBA", COLOR),
    "progressive JPEG": (jpeg(progressive=True), "RGB", COLOR),
    "JPEG with restart markers": (jpeg(restart_marker_blocks=1), "RGB", COLOR),
    "JPEG of three scans": (jpeg_in_three_scans(plain()), "RGB", COLOR),
    "GIF": (encode(plain(), "GIF"), "RGB", COLOR),
    "BMP": (encode(plain(), "BMP"), "RGB", COLOR),
    "WebP": (encode(plain(), "WEBP"), "RGB", COLOR),
    "animated PNG": (animated("PNG"), "RGB", COLOR),
    "animated GIF": (animated("GIF"), "RGB", COLOR),
    "animated WebP": (animated("WEBP"), "RGB", COLOR),
    "MPO": (animated("MPO"), "RGB", COLOR),
}


@pytest.mark.parametrize(("data", "mode", "color"), KINDS.values(), ids=list(KINDS))
async def test_every_kind_of_picture_is_read_by_every_use(data: bytes, mode: str, color: tuple[int, int, int]) -> None:
    """wagtail/wagtail #729, agschwender/pilbox #34: a camera's JPEG was refused as MPO. The first frame of an animation counts."""
    picture = decode(data).pixels
    assert (picture.mode, picture.size) == (mode, SIZE)
    assert distance(picture, color) < 6
    with Image.open(io.BytesIO(await prepare_image(data, AttachmentSettings()))) as prepared:
        assert prepared.size == SIZE


def test_adobes_inverted_inks_are_read_as_browsers_do() -> None:
    """LadybirdBrowser/ladybird #6486: a JPEG of four inks is stored inverted, with Adobe's marker and without it."""
    data = jpeg("CMYK")
    start = data.index(b"\xff\xee")
    length = struct.unpack_from(">H", data, start + 2)[0]
    for file in (data, data[:start] + data[start + 2 + length :]):
        assert distance(decode(file).pixels, COLOR) < 12


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    """python-pillow/Pillow #3011, unslothai/unsloth #10094: grey of sixteen bits became white."""
    assert decode(encode(Image.new("I;16", SIZE, 40000), "PNG")).pixels.getpixel((5, 5)) == (156, 156, 156)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
async def test_smallest_and_narrowest_pictures_are_read(size: tuple[int, int]) -> None:
    data = encode(Image.new("RGB", size, COLOR), "PNG")
    assert decode(data).pixels.size == size
    with Image.open(io.BytesIO(await prepare_image(data, AttachmentSettings()))) as prepared:
        assert min(prepared.size) >= 32


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_colours_of_an_iphones_picture_are_converted(image_format: str) -> None:
    """processwire/processwire-issues #2265, OpenDisplay/Home_Assistant_Integration #73: without its profile it looked dull."""
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(image_format, {})
    picture = decode(encode(plain(), image_format, icc_profile=wide_profile(), **options)).pixels
    red, green, _ = picture.getpixel((5, 5))  # type: ignore[misc]
    assert red > COLOR[0] + 10
    assert green < COLOR[1]


def test_transparent_picture_with_a_profile_stays_visible() -> None:
    """python-pillow/Pillow #1662: converted from its profile, it became transparent everywhere."""
    picture = decode(encode(Image.new("RGBA", SIZE, (*COLOR, 200)), "PNG", icc_profile=wide_profile())).pixels
    assert (picture.mode, picture.getpixel((5, 5))[3]) == ("RGBA", 200)  # type: ignore[index]


def test_first_picture_of_a_file_of_two_is_read() -> None:
    """python-pillow/Pillow #1960: a JPEG with a small copy of itself behind it."""
    assert decode(jpeg() + encode(Image.new("L", (8, 8)), "JPEG")).pixels.size == SIZE


OTHER_FILES = {
    "TIFF": (encode(plain(), "TIFF"), "a TIFF"),
    "ICO": (encode(plain(), "ICO"), "an ICO"),
    "AVIF": (encode(plain(), "AVIF"), "an AVIF"),
    "JPEG 2000": (encode(plain(), "JPEG2000"), "a JPEG 2000"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(100), "a HEIC"),
    "JPEG XL": (b"\xff\x0a" + bytes(100), "a JPEG XL"),
    "SVG": (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
    "a web page": (b"<!DOCTYPE html><html>404", "a web page"),
    "PDF": (b"%PDF-1.7", "a PDF"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(100), "a video"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "nothing": (b"", "empty"),
    "text": (b"hello", "an unknown format"),
    "PNG for iPhone apps (treeform/pixie #387)": (png()[:8] + chunk(b"CgBI", b"\x50\0\x20\2") + png()[8:], "for iPhone apps"),
}


@pytest.mark.parametrize(("data", "words"), OTHER_FILES.values(), ids=list(OTHER_FILES))
def test_refused_file_is_named_with_the_cure(data: bytes, words: str) -> None:
    with pytest.raises(PermanentError, match=words) as raised:
        decode(data)
    assert raised.value.code == "image-unreadable"
    assert "PNG" in str(raised.value)


BASE64 = {
    "padded": lambda text: text,
    "as a data URL": lambda text: "data:image/png;base64," + text,
    "a data URL of another type": lambda text: "data:text/plain;charset=utf-8;base64," + text,
    "a data URL without a type": lambda text: "data:;base64," + text,
    "matatonic/openedai-vision #4: without padding": lambda text: text.rstrip("="),
    "omnimind-ai/OmniBot #360: in lines": lambda text: "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
    "Helicone/helicone #4223: a space behind the comma": lambda text: "data:image/jpeg;base64, " + text,
    "in the alphabet of URLs": lambda text: text.replace("+", "-").replace("/", "_"),
    "percent escapes": lambda text: "DATA:image/png;base64," + quote(text, safe=""),
    "too much padding": lambda text: text + "===",
}


@pytest.mark.parametrize("write", BASE64.values(), ids=list(BASE64))
async def test_picture_as_base64_is_read_however_it_is_written(write: Callable[[str], str], claims: ClaimStore) -> None:
    data = b"".join(png(mode) + bytes(filler) for filler, mode in enumerate(("RGB", "L")))
    assert "/" in base64.b64encode(data).decode()
    assert "+" in base64.b64encode(data).decode()
    text = write(base64.b64encode(data).decode())
    assert parse_base64(text) == data
    picture = await ImageLoader(claims, VisionSettings()).from_base64(text)
    assert picture.size == SIZE


@pytest.mark.parametrize("text", ["A", "AAAAA", "ab*c", "data:image/png;base64", "https://example.org/a.png", "é"])
def test_text_that_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_base64(text)


def test_no_error_shows_an_object_of_python() -> None:
    for data in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP", png()[:60]):
        with pytest.raises(PermanentError) as raised:
            decode(data)
        assert " at 0x" not in str(raised.value)


def test_sound_text_beside_a_damaged_one_is_kept() -> None:
    data = with_chunk(with_chunk(png(), b"tEXt", b"seed\x0042"), b"zTXt", b"prompt\0\0" + BOMB)
    assert decode(with_chunk(data, b"tEXt", b"artist\0x", checksum=1)).text_chunks == {"seed": "42"}


@pytest.mark.parametrize("profile", [None, wide_profile()], ids=["no profile", "profile"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_picture_outlives_any_damage_of_its_metadata(image_format: str, profile: bytes | None) -> None:
    """Finds the next report: bytes of EXIF, texts and the profile are changed at random; each picture keeps its pixels.

    A damaged profile may convert other colours, or none: it leaves the transparency alone, and a uniform picture uniform.
    """
    rng = random.Random(20)
    rich = exif(orientation(1), ZERO_RATIO, struct.pack("<HHII", 0x10F, 2, 30, 60)) + bytes(300)
    options = {"exif": EXIF_HEAD + rich if image_format != "PNG" else rich, "icc_profile": profile}
    picture = plain() if image_format == "JPEG" else Image.new("RGBA", SIZE, (*COLOR, 200))
    data = encode(picture, image_format, **options | ({"lossless": True} if image_format == "WEBP" else {}))
    if image_format == "PNG":
        data = with_chunk(with_chunk(data, b"tEXt", b"Comment\0text"), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta/>")
    colors = decode(data).pixels.getcolors()
    places = [index for index in range(len(data)) if in_metadata(data, index, image_format)]
    assert len(places) > 300
    for _ in range(100):
        damaged = bytearray(data)
        for place in rng.sample(places, 3):
            damaged[place] = rng.randrange(256)
        pixels = decode(bytes(damaged)).pixels
        assert (sorted(pixels.size), pixels.mode) == (sorted(SIZE), picture.mode)
        assert pixels.getbands()[3:] == () or pixels.getchannel("A").getextrema() == (200, 200)
        assert len(pixels.getcolors() or ()) == 1
        assert profile or pixels.getcolors() == colors


def in_metadata(data: bytes, index: int, image_format: str) -> bool:
    """Whether the byte belongs to the content of metadata, not to their length or name, nor to pixels."""
    heads = {"JPEG": (b"Exif\0\0", b"ICC_PROFILE"), "PNG": (b"eXIf", b"iCCP", b"tEXt", b"iTXt"), "WEBP": (b"EXIF", b"ICCP")}[image_format]
    for head in heads:
        start = data.find(head)
        if start < 0:
            continue
        length = {
            "JPEG": lambda at: struct.unpack_from(">H", data, at - 2)[0] - 2,
            "PNG": lambda at: struct.unpack_from(">I", data, at - 4)[0],
        }
        size = length[image_format](start) if image_format in length else struct.unpack_from("<I", data, start + 4)[0]
        begin = start + {"JPEG": 0, "PNG": 4, "WEBP": 8}[image_format]
        if begin <= index < begin + size:
            return True
    return False


def test_one_reader_opens_all_pictures_from_outside() -> None:
    """A second one would forgive other things. The model process reads only a PNG that a worker has encoded, or its own."""
    assert {place for place, name in collect_decoders() if name == "PIL.Image.open"} == {
        "actors/decoding/pictures.py",
        "actors/engines/language/checkpoint_check.py",
        "actors/engines/language/vision_model.py",
    }
    assert [path for path in parsed_files() if re.search("exif_transpose|getexif", (ROOT / path).read_text())] == []
