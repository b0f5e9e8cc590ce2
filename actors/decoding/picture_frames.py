"""Decodes all frames of a picture, inside a decoder process, for a reader that must see everything that the file shows.

GIF, WebP and PNG may be animated. Frames are put together as a viewer does, on white, and reduced, so that an answer stays small.
"""

import math
from collections.abc import Iterator
from typing import Any

from PIL import Image

from actors.decoding.picture_file import TOO_COSTLY, PictureFile
from actors.decoding.pictures import check_cost, load_frame, open_picture
from actors.decoding.protocol import Refused

RGB_BYTES, REDUCING_GAP = 3, 2.0
"""REDUCING_GAP: a large frame is averaged first, to at least twice the wanted size, which takes less time and memory."""


def read_frames(
    data: bytes, *, max_pixels: int, max_frames: int, max_side: int, max_answer_bytes: int, label: str
) -> tuple[dict[str, Any], bytes]:
    """The number of frames and the size of each, and their RGB pixels one after the other. Raises Refused.

    `max_pixels`: of all frames together. `max_side`: pixels of the longer side to which a larger frame is reduced; smaller when all frames
    would exceed `max_answer_bytes`.
    """
    with open_picture(data, label, animated=True) as (file, opened):
        count = getattr(opened, "n_frames", 1)
        if count > max_frames:
            message = f"{label} has {count} frames; at most {max_frames} are checked, and none is left out. Send fewer, or the pictures."
            raise Refused(TOO_COSTLY, message)
        check_cost(opened.size, count, max_pixels, label)
        side = min(max_side, math.isqrt(max_answer_bytes // (RGB_BYTES * count)))
        frames = [reduce_frame(frame, side) for frame in load_frames(opened, file, count, label)]
    return {"frames": count, "size": frames[0][0]}, b"".join(pixels for _, pixels in frames)


def load_frames(opened: Image.Image, file: PictureFile, count: int, label: str) -> Iterator[Image.Image]:
    """Each frame until the next one is loaded: Pillow decodes all into the same picture. Raises Refused and ValueError.

    A later frame of a GIF may be larger than the picture, and Pillow would enlarge it without a limit.
    """
    size = opened.size
    for index in range(count):
        opened.seek(index)
        if opened.size != size:
            raise ValueError("a later frame is larger than the picture")
        yield load_frame(opened, file, label)


def reduce_frame(frame: Image.Image, side: int) -> tuple[tuple[int, int], bytes]:
    """Size and RGB pixels, on white; the longer side has at most `side`. Every pixel of the frame counts in the result."""
    scale = min(1.0, side / max(frame.size))
    size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
    reduced = frame if size == frame.size else frame.resize(size, Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
    if reduced.mode == "RGBA":
        reduced = Image.alpha_composite(Image.new("RGBA", size, "white"), reduced).convert("RGB")
    return size, reduced.tobytes()
