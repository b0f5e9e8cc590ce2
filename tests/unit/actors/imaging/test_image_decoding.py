"""Pictures are decoded in processes that are killed when one costs too much; the next picture gets another process."""

import io
import json
import random
import struct
import time
from dataclasses import replace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from actors.attachments.documents import document_job
from actors.decoding.png_file import MAX_TEXT_CHARS
from actors.decoding.pool import Call, DecoderPool
from actors.imaging.image_decoding import PICTURES, decode_image, flatten_on_white, picture_job
from actors.settings import AttachmentSettings
from bus.errors import PermanentError
from tests.support.hostile_files import scan_bomb
from tests.support.picture_files import EXIF_HEAD, SIZE, exif, exif_comment, jpeg, plain, with_segment
from tests.support.picture_files import encode as encode_with
from tests.support.sample_documents import make_docx

MAX_PIXELS = 25_000_000


def encode(picture: Image.Image, image_format: str = "PNG") -> bytes:
    with io.BytesIO() as file:
        picture.save(file, image_format)
        return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pixels_are_those_of_the_file(mode: str) -> None:
    pixels = random.Random(1).randbytes(20 * 10 * 2)
    picture = Image.frombytes("I;16", (20, 10), pixels) if mode == "I;16" else Image.frombytes("L", (20, 10), pixels[:200]).convert(mode)
    expected = picture.point(lambda level: level / 256).convert("L") if mode == "I;16" else picture
    decoded = flatten_on_white(decode_image(encode(picture), MAX_PIXELS).pixels)
    assert decoded.tobytes() == flatten_on_white(expected.convert("RGBA")).tobytes()


def test_jpeg_of_a_thousand_scans_is_refused_for_good() -> None:
    started = time.monotonic()
    with pytest.raises(PermanentError) as raised:
        decode_image(scan_bomb(), MAX_PIXELS)
    assert raised.value.code == "image-too-costly"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("limits", [{"cpu_seconds": 0.02}, {"wall_seconds": 0.05}])
def test_job_over_its_time_is_killed_and_next_one_is_decoded(limits: dict[str, float]) -> None:
    pool = DecoderPool(1)
    job = document_job(AttachmentSettings())
    with pytest.raises(PermanentError) as raised:
        pool.decode(replace(job, **limits), make_docx(*["word " * 20] * 100_000))
    assert raised.value.code == "document-too-complex"
    assert pool.decode(job, b"text")[1] == b"text"
    pool.close()


def test_process_is_used_again_also_where_its_parent_is_large() -> None:
    """Linux counts the parent's peak into `ru_maxrss` of a child."""
    pool, ballast = DecoderPool(1), b"x" * (500 << 20)
    job = picture_job({"max_pixels": 10_000, "label": "It"}, 10_000)
    for _ in range(3):
        pool.decode(job, encode(Image.new("RGB", (8, 8))))
    assert len(ballast) > 0
    assert len(pool._decoders) == 1
    pool.close()


def test_call_that_is_cancelled_before_it_begins_is_killed() -> None:
    pool, job = DecoderPool(1), document_job(AttachmentSettings())
    call = Call(job, make_docx(*["word " * 20] * 100_000))
    call.kill()
    started = time.monotonic()
    with pytest.raises(PermanentError):
        pool._run(call)
    assert time.monotonic() - started < 5
    pool.close()


def png_with_text(*texts: str) -> bytes:
    chunks = PngInfo()
    for number, text in enumerate(texts):
        chunks.add_itxt(f"text {number}", text, zip=True)
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
        return file.getvalue()


def test_most_text_chunks_fit_into_an_answer_and_more_are_left_out() -> None:
    """Each of these characters takes twelve bytes of JSON."""
    text = "\U0001f600" * 200_000
    assert 5 * len(text) <= MAX_TEXT_CHARS < 6 * len(text)
    assert list(decode_image(png_with_text(*[text] * 5), MAX_PIXELS).text_chunks.values()) == [text] * 5
    assert list(decode_image(png_with_text(*[text] * 6), MAX_PIXELS).text_chunks.values()) == [text] * 5


COMMENT = b"ASCII\0\0\0"


@pytest.mark.parametrize("order", ["<", ">"])
def test_comment_of_a_jpeg_or_webp_is_read_as_the_text_chunks_of_a_png(order: str) -> None:
    texts = {"seed": "7", "Title": "가을"}
    written = exif_comment(COMMENT + json.dumps(texts).encode("ascii"), order)
    files = [with_segment(jpeg(), 0xE1, EXIF_HEAD + written), encode_with(plain(), "WEBP", exif=written)]
    assert [decode_image(file, MAX_PIXELS).text_chunks for file in files] == [texts, texts]


@pytest.mark.parametrize(
    "written",
    [
        exif_comment(b"UNICODE\0" + b'{"seed": "7"}'),
        exif_comment(COMMENT + b'{"seed": 7}'),
        exif_comment(COMMENT + b'["seed"]'),
        exif_comment(COMMENT + b'{"seed": {"a": "7"}}'),
        exif_comment(COMMENT + b'{"seed": "\\ud800"}'),
        exif_comment(COMMENT + b'{"seed": "\xe9"}'),
        exif_comment(COMMENT + b'{"a": ' * 10_000),
        exif_comment(COMMENT + b'{"seed": "7"}', count=0xFFFFFFFF),
        exif_comment(COMMENT + b'{"seed": "7"}', count=12),
        exif_comment(COMMENT + json.dumps({"seed": "7" * (64 << 10)}).encode()),
        exif_comment(COMMENT + b'{"seed": "7"}')[:30],
        exif(struct.pack("<HHII", 0x8769, 4, 1, 0xFFFFFFF0)),
        exif(struct.pack("<HHII", 0x8769, 4, 1, 8)),
    ],
)
def test_other_comment_is_left_out(written: bytes) -> None:
    """That of a camera, a damaged one, and one that is larger than a picture of ours has."""
    decoded = decode_image(encode_with(plain(), "WEBP", exif=written), MAX_PIXELS)
    assert (decoded.text_chunks, decoded.pixels.size) == ({}, SIZE)


def test_job_over_its_memory_is_refused_for_good() -> None:
    job = picture_job({"max_pixels": MAX_PIXELS, "label": "It"}, MAX_PIXELS)
    with pytest.raises(PermanentError) as raised:
        PICTURES.decode(replace(job, memory_bytes=100 << 20), encode(Image.new("RGB", (4000, 4000))))
    assert raised.value.code == "image-too-costly"


def test_idle_process_that_was_killed_is_replaced() -> None:
    """As by the system, when its memory is short: the picture is not at fault."""
    pool = DecoderPool(1)
    job = document_job(AttachmentSettings())
    assert pool.decode(job, b"text")[1] == b"text"
    pool.close()
    assert pool.decode(job, b"text")[1] == b"text"
    pool.close()
