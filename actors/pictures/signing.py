"""A signature on a picture: how large, where, how strong.

The mark's width is a share of the picture's; it keeps its proportions, stays 10 pixels from the edges and never outgrows the picture.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from actors.pictures.fonts import Run
from contracts.watermark import Position, Signature, Size

MARGIN = 10
SHARE: dict[Size, float] = {"small": 0.15, "medium": 0.25, "large": 0.35}
MEASURED_AT = 40
SMALLEST_FONT, LARGEST_FONT = 8, 1000


def sign(picture: Image.Image, mark: Image.Image, signature: Signature) -> Image.Image:
    """An RGBA picture with an RGBA mark laid on it."""
    mark = faded(mark, signature.opacity)
    layer = Image.new("RGBA", picture.size)
    layer.paste(mark, corner(picture.size, mark.size, signature.position))
    return Image.alpha_composite(picture, layer)


def room(side: int) -> int:
    """What the margins leave of a side; a picture smaller than its margins still has one pixel."""
    return max(1, side - 2 * MARGIN)


def box(picture: tuple[int, int], mark: tuple[int, int], size: Size, tallest: int | None = None) -> tuple[int, int]:
    """Width and height of the mark, in pixels: the share of the width, unless the room in the picture, or `tallest`, is less."""
    width, height = mark
    highest = min(room(picture[1]), tallest or picture[1])
    scale = min(SHARE[size] * picture[0] / width, room(picture[0]) / width, highest / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def corner(picture: tuple[int, int], mark: tuple[int, int], position: Position) -> tuple[int, int]:
    """Where the mark's top left corner lies."""
    vertical, _, horizontal = position.partition("-")
    left = {"left": MARGIN, "center": (picture[0] - mark[0]) // 2, "right": picture[0] - mark[0] - MARGIN}[horizontal]
    top = MARGIN if vertical == "top" else picture[1] - mark[1] - MARGIN
    return max(0, min(left, picture[0] - mark[0])), max(0, min(top, picture[1] - mark[1]))


def faded(mark: Image.Image, opacity: float) -> Image.Image:
    """The mark with its own transparency multiplied."""
    mark = mark.copy()
    mark.putalpha(mark.getchannel("A").point([round(level * opacity) for level in range(256)]))
    return mark


def picture_mark(mark: Image.Image, picture: tuple[int, int], size: Size) -> Image.Image:
    return mark.resize(box(picture, mark.size, size), Image.Resampling.LANCZOS)


def text_mark(text: Sequence[Run], picture: tuple[int, int], size: Size) -> Image.Image:
    """The text in white with a dark rim, so that it is seen on any ground. A short text is no taller than the share of the height."""
    tallest = max(1, round(SHARE[size] * picture[1]))
    rough = inked(text, MEASURED_AT)
    goal = box(picture, rough.size, size, tallest)
    # Letters come in whole sizes only: drawn at twice the size, then brought to the very pixel.
    points = math.ceil(2 * MEASURED_AT * goal[0] / rough.width)
    drawn = inked(text, max(SMALLEST_FONT, min(LARGEST_FONT, points)))
    return drawn.resize(box(picture, drawn.size, size, tallest), Image.Resampling.LANCZOS)


def inked(text: Sequence[Run], points: int) -> Image.Image:
    """The text on nothing, cut to its ink."""
    left, top, right, bottom = measure(text, points)
    mark = Image.new("RGBA", (right - left, bottom - top))
    write(ImageDraw.Draw(mark), text, points, (-left, -top))
    return mark.crop(mark.getbbox() or (0, 0, 1, 1))


def measure(text: Sequence[Run], points: int) -> tuple[int, int, int, int]:
    """The box of ink and rim around a text whose baseline begins at 0, 0: left, top, right, bottom."""
    pen, boxes = 0.0, []
    for run in text:
        font = font_of(run.face.path, points)
        left, top, right, bottom = font.getbbox(run.text, anchor="ls", stroke_width=rim(points))
        boxes.append((left + pen, top, right + pen, bottom))
        pen += font.getlength(run.text)
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return int(min(lefts)) - 1, int(min(tops)) - 1, int(max(rights)) + 1, int(max(bottoms)) + 1


def write(draw: ImageDraw.ImageDraw, text: Sequence[Run], points: int, start: tuple[float, float]) -> None:
    pen, baseline = start
    for run in text:
        font = font_of(run.face.path, points)
        draw.text((pen, baseline), run.text, "white", font, anchor="ls", stroke_width=rim(points), stroke_fill=(0, 0, 0, 160))
        pen += font.getlength(run.text)


def rim(points: int) -> int:
    return max(1, points // 16)


def font_of(path: Path, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, points)
