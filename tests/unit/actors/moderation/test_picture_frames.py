"""All frames of a picture, decoded in a process of its own, and files whose frames viewers would see differently."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from PIL import Image

from actors.engines.moderation.engine import PictureToCheck
from actors.moderation.picture_frames import MAX_FRAMES, MAX_SIDE, FrameReader, split_frames
from bus.errors import PermanentError
from tests.support.hostile_files import animated_gif
from tests.support.picture_files import chunk, encode

COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
MAX_PIXELS = 4_000_000


@pytest.fixture(scope="module")
def reader() -> Iterator[FrameReader]:
    with closing(FrameReader(MAX_PIXELS)) as opened:
        yield opened


def read(reader: FrameReader, data: bytes) -> list[PictureToCheck]:
    return asyncio.run(reader.read(data, "it"))


def animate(image_format: str, size: tuple[int, int] = (40, 20)) -> bytes:
    first, *others = (Image.new("RGB", size, color) for color in COLORS)
    return encode(first, image_format, save_all=True, append_images=others, duration=10)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_each_frame_is_read_in_order(reader: FrameReader, image_format: str) -> None:
    frames = read(reader, animate(image_format))
    assert [frame.size for frame in frames] == [(40, 20)] * 3
    for frame, color in zip(frames, COLORS, strict=True):
        assert all(abs(found - expected) < 8 for found, expected in zip(frame.pixels, color * 800, strict=True))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_single_picture_is_one_frame_and_a_large_one_is_reduced(reader: FrameReader, image_format: str) -> None:
    (small,) = read(reader, encode(Image.new("RGB", (40, 20), "red"), image_format))
    (large,) = read(reader, encode(Image.new("RGB", (2000, 3), "red"), image_format))
    assert (small.size, large.size) == ((40, 20), (MAX_SIDE, 2))


def test_transparent_pixels_are_white(reader: FrameReader) -> None:
    (frame,) = read(reader, encode(Image.new("RGBA", (2, 1), (0, 0, 0, 0)), "PNG"))
    assert frame.pixels == b"\xff" * 6


def test_many_frames_are_reduced_together(reader: FrameReader) -> None:
    frames = [Image.new("RGB", (20, 3900), (index, 0, 0)) for index in range(MAX_FRAMES)]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert {frame.size for frame in read(reader, data)} == {(2, 334)}


@pytest.mark.parametrize("declared", [1, 2, 4])
def test_animated_png_of_another_number_of_frames_than_declared_is_refused(reader: FrameReader, declared: int) -> None:
    data = animate("PNG")
    place = data.index(b"acTL") - 4
    with pytest.raises(PermanentError, match="declares another number") as caught:
        read(reader, data[:place] + chunk(b"acTL", declared.to_bytes(4) + bytes(4)) + data[place + 20 :])
    assert caught.value.code == "image-unreadable"
    with pytest.raises(PermanentError, match="declares another number"):
        read(reader, data[:place] + data[place + 20 :])


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_animation_that_is_cut_short_is_refused_or_has_the_frames_that_are_left(reader: FrameReader, image_format: str) -> None:
    data = animate(image_format, (200, 200))
    for end in (len(data) // 2, len(data) - 30):
        with suppress(PermanentError):
            assert len(read(reader, data[:end])) < 3


def test_gif_with_a_frame_larger_than_the_picture_is_refused(reader: FrameReader) -> None:
    with pytest.raises(PermanentError) as caught:
        read(reader, animated_gif(b"\2\0\2\0", frames=2))
    assert caught.value.code == "image-unreadable"


def test_answer_of_another_form_is_refused() -> None:
    assert len(split_frames({"frames": 2, "size": [2, 1]}, bytes(12))) == 2
    for header in (
        {},
        {"frames": 0, "size": [0, 0]},
        {"frames": 3, "size": [2, 1]},
        {"frames": 2, "size": [-2, -1]},
        {"frames": 2, "size": 3},
    ):
        with pytest.raises((LookupError, TypeError, ValueError)):
            split_frames(header, bytes(12))
