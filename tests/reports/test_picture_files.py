"""The readers of picture files: what may be missing, in which order, at which cost, and which colours a profile asks for.

Each was found by changing sound files, with the public report of its kind beside it.
"""

import random
import time
import zlib
from contextlib import suppress

import pytest
from PIL import Image

from actors.decoding.picture_file import detect_format
from actors.decoding.pictures import read_file
from actors.decoding.png_file import MAX_CHUNKS_OF_A_KIND
from actors.decoding.protocol import Refused
from actors.imaging.image_decoding import decode_image
from bus.errors import PermanentError
from tests.support.hostile_files import hostile_metadata
from tests.support.picture_files import (
    COLOR,
    SIZE,
    chunk,
    encode,
    jpeg_in_three_scans,
    plain,
    png,
    srgb_profile,
    wide_profile,
    with_chunk,
)

READ_SECONDS = 2.0
"""Processor time for a file without its pixels; the busiest takes half a second."""
NOISE = Image.frombytes("RGB", (33, 25), random.Random(20).randbytes(33 * 25 * 3))
SEVERAL_SCANS = {
    "progressive": encode(NOISE, "JPEG", progressive=True),
    "three scans": jpeg_in_three_scans(NOISE),
    "restarts per row": encode(NOISE, "JPEG", restart_marker_rows=1),
    "restarts per three blocks": encode(NOISE, "JPEG", restart_marker_blocks=3),
}
ONE_SCAN = {
    "usual": encode(NOISE, "JPEG"),
    "colours of full size": encode(NOISE, "JPEG", subsampling=0),
    "grey": encode(NOISE.convert("L"), "JPEG"),
    "tables of its own": encode(NOISE, "JPEG", optimize=True),
}


def read(data: bytes) -> Image.Image:
    return decode_image(data, 25_000_000).pixels


def read_cut(data: bytes) -> dict[int, Image.Image]:
    """The picture that is read for each length to which the file may be cut; it lacks the lengths that are refused as unreadable."""
    pictures = {}
    for length in range(2, len(data)):
        try:
            pictures[length] = read(data[:length])
        except PermanentError as error:
            if error.code != "image-unreadable":
                raise
    return pictures


@pytest.mark.parametrize("data", ONE_SCAN.values(), ids=list(ONE_SCAN))
def test_jpeg_that_lacks_its_end_is_read_where_no_pixel_is_missing(data: bytes) -> None:
    """python-pillow/Pillow #4414: only its end lacks. Of a shorter one browsers show grey rows: we judge and sign no half picture."""
    whole, pictures = read(data), read_cut(data)
    assert {len(data) - 2, len(data) - 1} <= pictures.keys()
    assert [length - len(data) for length, picture in pictures.items() if picture.tobytes() != whole.tobytes()] == []


@pytest.mark.parametrize("data", SEVERAL_SCANS.values(), ids=list(SEVERAL_SCANS))
def test_jpeg_without_its_end_that_may_lack_scans_or_restarts_is_refused(data: bytes) -> None:
    """Of a progressive one the last scans may be missing, and each restart hides what was missing before it."""
    read(data)
    assert read_cut(data) == {}
    with pytest.raises(PermanentError, match="cut short"):
        read(data[:-2])


def test_hostile_metadata_are_read_or_refused_in_little_time() -> None:
    """Heads of EXIF by the hundred thousand, and bombs by the thousand, each within every limit: they took 7 to 15 seconds."""
    slow = []
    for number, data in enumerate(hostile_metadata()):
        file_format = detect_format(data)
        assert file_format
        started = time.process_time()
        with suppress(Refused):
            read_file(data, file_format, "It")
        if (seconds := time.process_time() - started) > READ_SECONDS:
            slow.append(f"{number}: {data[:60]!r} {seconds:.1f} s")
    assert slow == []


def test_text_behind_a_few_bombs_is_still_read() -> None:
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20)))
    data = png()[:33] + bomb * 3 + chunk(b"zTXt", b"seed\0\0" + zlib.compress(b"42")) + png()[33:]
    assert decode_image(data, 25_000_000).text_chunks == {"seed": "42"}


def test_metadata_beyond_the_limit_of_their_kind_are_left_out_alone() -> None:
    """The chunks of other kinds count, wherever they are."""
    texts = b"".join(chunk(b"tEXt", b"key%d\0v" % number) for number in range(MAX_CHUNKS_OF_A_KIND + 1))
    data = png()[:33] + texts + chunk(b"zTXt", b"seed\0\0" + zlib.compress(b"42")) + png()[33:]
    read = decode_image(data, 25_000_000).text_chunks
    assert (len(read), read["seed"], f"key{MAX_CHUNKS_OF_A_KIND}" in read) == (MAX_CHUNKS_OF_A_KIND + 1, "42", False)


@pytest.mark.parametrize("profile", [None, srgb_profile(), wide_profile()], ids=["none", "sRGB", "wide"])
def test_transparent_colour_of_a_png_survives_its_profile(profile: bytes | None) -> None:
    """The kind of python-pillow/Pillow #1662: the conversion of colours must not lose the transparency."""
    picture = read(encode(plain(), "PNG", transparency=COLOR, icc_profile=profile))
    assert (picture.mode, picture.getchannel("A").getextrema()) == ("RGBA", (0, 0))
    opaque = read(encode(plain(), "PNG", transparency=(1, 2, 3), icc_profile=profile))
    assert (opaque.mode, opaque.getchannel("A").getextrema()) == ("RGBA", (255, 255))


@pytest.mark.parametrize("transparency", [{}, {"transparency": 0}], ids=["opaque", "transparent"])
def test_colours_of_a_palette_are_converted_as_those_of_pixels(transparency: dict[str, int]) -> None:
    palette = Image.new("P", SIZE, 1)
    palette.putpalette([0, 0, 0, *COLOR])
    converted = read(encode(palette, "PNG", icc_profile=wide_profile(), **transparency)).convert("RGB")
    assert converted.tobytes() == read(png(icc_profile=wide_profile())).tobytes()
    assert converted.getpixel((5, 5)) != COLOR


def renamed(profile: bytes, old: str, new: str) -> bytes:
    assert len(old) == len(new)
    assert old.encode("utf-16-be") in profile
    return profile.replace(old.encode("utf-16-be"), new.encode("utf-16-be"))


def test_profile_is_srgb_by_its_numbers_and_not_by_its_name() -> None:
    """Many profiles have sRGB in their names and other numbers (`sRGB-elle-V2-g10` is linear), and some are sRGB by another name."""
    unchanged, wide = NOISE.tobytes(), read(encode(NOISE, "PNG", icc_profile=wide_profile())).tobytes()
    assert wide != unchanged
    assert read(encode(NOISE, "PNG", icc_profile=renamed(wide_profile(), "wide", "sRGB"))).tobytes() == wide
    for profile in (srgb_profile(), renamed(srgb_profile(), "sRGB", "c2ci")):
        assert read(encode(NOISE, "PNG", icc_profile=profile)).tobytes() == unchanged


@pytest.mark.parametrize("transparency", [{}, {"transparency": 0}], ids=["opaque", "transparent"])
def test_palette_behind_the_pixels_of_a_png_is_used(transparency: dict[str, int]) -> None:
    """The order that the specification forbids; the reason was the name of an exception of Python."""
    data = encode(plain("P"), "PNG", **transparency)
    start = data.index(b"PLTE") - 4
    end = data.index(b"IDAT") - 4
    late = data[start:end]
    moved = data[:start] + data[end:-12] + late + data[-12:]
    assert moved.index(b"IDAT") < moved.index(b"PLTE")
    assert read(moved).tobytes() == read(data).tobytes()


def test_first_profile_of_a_png_counts() -> None:
    second = chunk(b"iCCP", b"p\0\0" + zlib.compress(srgb_profile()))
    data = with_chunk(png(), b"iCCP", b"p\0\0" + zlib.compress(wide_profile()))
    start = data.index(b"IDAT") - 4
    assert read(data[:start] + second + data[start:]).tobytes() == read(data).tobytes() != read(png()).tobytes()


@pytest.mark.parametrize("without", [b"PLTE", b"IDAT", b"IHDR"])
def test_reason_of_a_refusal_is_no_name_of_python(without: bytes) -> None:
    data = png("P")
    start = data.index(without) - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    with pytest.raises(PermanentError, match=r"PNG") as raised:
        read(data[:start] + data[end:])
    assert "Error" not in str(raised.value)
