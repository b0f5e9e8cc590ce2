"""Pictures are decoded in processes that are killed when one costs too much; the next picture gets another process."""

import io
import random
import time
from dataclasses import replace

import pytest
from PIL import Image

from actors.attachments.documents import document_job
from actors.decoding.pool import DecoderPool
from actors.imaging.image_decoding import PICTURES, decode_image, flatten_on_white, picture_job
from actors.settings import AttachmentSettings
from bus.errors import PermanentError
from tests.support.hostile_files import scan_bomb
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


def test_job_over_its_memory_is_refused_for_good() -> None:
    job = picture_job({"max_pixels": MAX_PIXELS, "formats": ("PNG",), "label": "It"}, MAX_PIXELS)
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
