"""The frames of a picture from outside, decoded in a process of its own, as the models of the moderate step get them.

One picture is decoded after the other, and reduced where it is decoded, so that the worker's memory does not grow with the pictures.
"""

from dataclasses import replace
from typing import Any

from actors.decoding.pool import DecoderPool
from actors.engines.moderation.engine import PictureToCheck
from actors.imaging.image_decoding import picture_job

MAX_FRAMES = 50
"""Of an animation, each of which is checked."""
MAX_SIDE = 1024
"""Pixels of the longer side of what the models get; they scale it to 320 and less."""
MAX_ANSWER_BYTES = 16 << 20
"""Of all frames of a picture: fifty of 334 × 334."""


class FrameReader:
    """One decoder process, which starts with the first picture."""

    def __init__(self, max_pixels: int) -> None:
        """`max_pixels`: of all frames of a picture together."""
        self._pool, self._max_pixels = DecoderPool(1), max_pixels

    def close(self) -> None:
        self._pool.close()

    async def read(self, data: bytes, label: str) -> list[PictureToCheck]:
        """All frames of a picture, on white, in sRGB and rotated as its EXIF orientation says.

        Raises PermanentError("image-unreadable" · "image-too-large" · "image-too-costly").
        """
        limits = {"max_frames": MAX_FRAMES, "max_side": MAX_SIDE, "max_answer_bytes": MAX_ANSWER_BYTES}
        job = picture_job({"max_pixels": self._max_pixels, "label": label} | limits, self._max_pixels)
        job = replace(job, kind="picture-frames", max_answer_bytes=MAX_ANSWER_BYTES)
        header, pixels = await self._pool.decode_async(job, data)
        try:
            return split_frames(header, bytes(pixels))
        except (LookupError, TypeError, ValueError) as error:
            raise job.broken(f"the process answered in another form: {error}") from error


def split_frames(header: dict[str, Any], pixels: bytes) -> list[PictureToCheck]:
    """Raises LookupError, TypeError or ValueError for an answer of another form: the process may have been taken over."""
    frames, (width, height) = int(header["frames"]), map(int, header["size"])
    size = 3 * width * height
    if not (1 <= frames <= MAX_FRAMES and width > 0 and height > 0 and len(pixels) == frames * size):
        raise ValueError(f"{frames} frames of {width}×{height} with {len(pixels)} bytes")
    return [PictureToCheck((width, height), pixels[start : start + size]) for start in range(0, len(pixels), size)]
