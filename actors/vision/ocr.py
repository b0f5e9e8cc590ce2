"""Reads the text of a picture in a process of its own, which is killed when a picture takes too much of it; the next picture gets another.

Reads RGB pictures that are already decoded. Needs the extra `ocr`; without it there is no reader.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import structlog
from anyio import to_thread
from PIL import Image

from actors.decoding.pool import DecoderPool, Job
from actors.vision.ocr_evidence import Reading, ReadLine, compare_copy, fold_text
from actors.vision.ocr_settings import OcrSettings
from bus.errors import PermanentError, TemporaryError
from contracts.verdict import Region

MAX_ANSWER_BYTES = 0
"""The lines are in the header of the answer."""
MAX_READ_LINES = 200
"""Of one picture, from the top; no advertisement has as many."""
SHORT_SIDE, MIN_SIDE = 736, 32
"""Pixels: the size for which lines are found best, and the least that can be read."""
log = structlog.get_logger()


@asynccontextmanager
async def open_text_reader(settings: OcrSettings) -> AsyncIterator["TextReader | None"]:
    """None when it is switched off, or the extra is missing, which the log says."""
    missing = [name for name in ("rapidocr", "onnxruntime") if find_spec(name) is None]
    if missing and settings.enabled:
        log.info("ocr.absent", missing=missing, message="The text of judged pictures is not read: pip install 'atelier[ocr]'")
    reader = TextReader(settings) if settings.enabled and not missing else None
    try:
        yield reader
    finally:
        if reader:
            reader.close()


class TextReader:
    """One process, which starts with the first picture and reads one picture after the other."""

    def __init__(self, settings: OcrSettings) -> None:
        self.settings = settings
        self._pool = DecoderPool(1)

    def close(self) -> None:
        self._pool.close()

    async def measure(self, picture: Image.Image, copy: str | None, region: Region | None) -> dict[str, Any]:
        """The fields of the evidence. `copy`: the text that the picture should show, in `region` where that is known."""
        reading = await self.read(picture, copy)
        words = self.settings.calls_to_action
        return await to_thread.run_sync(compare_copy, reading, copy, region, picture.height, words)

    async def read(self, picture: Image.Image, copy: str | None) -> Reading:
        """The lines of the picture. A picture that cannot be read is no error: the reading has the code of the failure."""
        pixels, size = await to_thread.run_sync(partial(scale_picture, picture, self.settings.max_side))
        try:
            header, _ = await self._pool.decode_async(self._build_job(size, copy), pixels)
            return parse_lines(header, size, picture.size)
        except (PermanentError, TemporaryError) as error:
            log.warning("ocr.failed", code=error.code, reason=str(error), width=picture.width, height=picture.height)
            return Reading(failure=error.code)

    def _build_job(self, size: tuple[int, int], copy: str | None) -> Job:
        settings = self.settings
        model = str(settings.model) if settings.model else None
        characters = "".join(sorted(set(fold_text(copy or ""))))
        return Job(
            "text-lines",
            {"width": size[0], "height": size[1], "model": model, "threads": settings.threads, "characters": characters},
            cpu_seconds=settings.seconds * settings.threads,
            wall_seconds=settings.seconds,
            memory_bytes=settings.memory_bytes,
            max_answer_bytes=MAX_ANSWER_BYTES,
            broken_code="ocr-failed",
            costly_code="ocr-too-costly",
            retirement_bytes=settings.memory_bytes,
        )


def scale_picture(picture: Image.Image, max_side: int) -> tuple[bytes, tuple[int, int]]:
    """The RGB pixels and their size: the shorter side is enlarged to SHORT_SIDE, unless the longer one would exceed `max_side`."""
    scale = min(max(1.0, SHORT_SIDE / min(picture.size)), max_side / max(picture.size))
    size = (max(MIN_SIDE, round(picture.width * scale)), max(MIN_SIDE, round(picture.height * scale)))
    rgb = picture.convert("RGB")
    return (rgb if size == picture.size else rgb.resize(size, Image.Resampling.LANCZOS)).tobytes(), size


def parse_lines(header: dict[str, Any], size: tuple[int, int], picture_size: tuple[int, int]) -> Reading:
    """Raises PermanentError("ocr-failed") for an answer of another form: the process may have been taken over."""
    try:
        lines = [_parse_line(line, size, picture_size) for line in header["lines"][:MAX_READ_LINES]]
        return Reading([line for line in lines if line], str(header["model"])[:100], str(header["unknown"])[:100])
    except (LookupError, TypeError, ValueError) as error:
        raise PermanentError("ocr-failed", f"the process answered in another form: {error}") from error


def _parse_line(line: dict[str, Any], size: tuple[int, int], picture_size: tuple[int, int]) -> ReadLine | None:
    """None for a box without an area. Raises LookupError, TypeError or ValueError."""
    left, top, right, bottom = (float(edge) for edge in line["box"])
    x, y = max(0.0, left / size[0]), max(0.0, top / size[1])
    width, height = min(1.0, right / size[0]) - x, min(1.0, bottom / size[1]) - y
    if not (width > 0 and height > 0):
        return None
    region = Region(x=round(x, 4), y=round(y, 4), width=max(1e-4, round(width, 4)), height=max(1e-4, round(height, 4)))
    text = None if line["text"] is None else str(line["text"])
    return ReadLine(text, float(line["confidence"]), region, float(line["height"]) * picture_size[1] / size[1])
