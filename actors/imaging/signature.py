"""Draws a signature on a picture: its size, position and opacity.

The mark's width is a share of the picture's width; it keeps its aspect ratio, a margin of 10 pixels, and never exceeds the picture.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from actors.imaging.text_runs import TextRun
from contracts.watermark import Signature, SignaturePosition, SignatureSize

MARGIN_PIXELS = 10
SIGNATURE_SHARE: dict[SignatureSize, float] = {"small": 0.15, "medium": 0.25, "large": 0.35}
REFERENCE_FONT_SIZE = 40
MIN_SIGNATURE_FONT_SIZE, MAX_SIGNATURE_FONT_SIZE = 8, 1000


def sign(picture: Image.Image, mark: Image.Image, signature: Signature) -> Image.Image:
    """An RGBA picture with an RGBA mark drawn on it."""
    mark = apply_opacity(mark, signature.opacity)
    layer = Image.new("RGBA", picture.size)
    layer.paste(mark, mark_position(picture.size, mark.size, signature.position))
    return Image.alpha_composite(picture, layer)


def side_without_margins(side: int) -> int:
    """A side without its margins; at least one pixel."""
    return max(1, side - 2 * MARGIN_PIXELS)


def fit_mark(picture: tuple[int, int], mark: tuple[int, int], size: SignatureSize, max_height: int | None = None) -> tuple[int, int]:
    """Width and height of the mark in pixels: its share of the width, limited by the margins and `max_height`."""
    width, height = mark
    height_limit = min(side_without_margins(picture[1]), max_height or picture[1])
    scale = min(SIGNATURE_SHARE[size] * picture[0] / width, side_without_margins(picture[0]) / width, height_limit / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def mark_position(picture: tuple[int, int], mark: tuple[int, int], position: SignaturePosition) -> tuple[int, int]:
    """Left and top of the mark."""
    vertical, _, horizontal = position.partition("-")
    left = {"left": MARGIN_PIXELS, "center": (picture[0] - mark[0]) // 2, "right": picture[0] - mark[0] - MARGIN_PIXELS}[horizontal]
    top = MARGIN_PIXELS if vertical == "top" else picture[1] - mark[1] - MARGIN_PIXELS
    return max(0, min(left, picture[0] - mark[0])), max(0, min(top, picture[1] - mark[1]))


def apply_opacity(mark: Image.Image, opacity: float) -> Image.Image:
    """The mark with its alpha channel multiplied by `opacity`."""
    mark = mark.copy()
    mark.putalpha(mark.getchannel("A").point([round(level * opacity) for level in range(256)]))
    return mark


def render_image_mark(mark: Image.Image, picture: tuple[int, int], size: SignatureSize) -> Image.Image:
    return mark.resize(fit_mark(picture, mark.size, size), Image.Resampling.LANCZOS)


def render_text_mark(text: Sequence[TextRun], picture: tuple[int, int], size: SignatureSize) -> Image.Image:
    """The text in white with a dark outline, readable on any background. The same share limits its height."""
    max_height = max(1, round(SIGNATURE_SHARE[size] * picture[1]))
    reference = render_text(text, REFERENCE_FONT_SIZE)
    goal = fit_mark(picture, reference.size, size, max_height)
    # Font sizes are whole numbers: drawn at about twice the size, then scaled to the exact pixel.
    font_size = math.ceil(2 * REFERENCE_FONT_SIZE * goal[0] / reference.width)
    drawn = render_text(text, max(MIN_SIGNATURE_FONT_SIZE, min(MAX_SIGNATURE_FONT_SIZE, font_size)))
    return drawn.resize(fit_mark(picture, drawn.size, size, max_height), Image.Resampling.LANCZOS)


def render_text(text: Sequence[TextRun], font_size: int) -> Image.Image:
    """The text on a transparent background, cropped to its drawn pixels."""
    left, top, right, bottom = measure_text(text, font_size)
    mark = Image.new("RGBA", (right - left, bottom - top))
    draw_runs(ImageDraw.Draw(mark), text, font_size, (-left, -top))
    return mark.crop(mark.getbbox() or (0, 0, 1, 1))


def measure_text(text: Sequence[TextRun], font_size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the drawn text with its outline, when its baseline starts at (0, 0)."""
    pen, boxes = 0.0, []
    for run in text:
        font = load_font(run.face.path, font_size)
        left, top, right, bottom = font.getbbox(run.text, direction=run.direction, anchor="ls", stroke_width=outline_width(font_size))
        boxes.append((left + pen, top, right + pen, bottom))
        pen += font.getlength(run.text, direction=run.direction)
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return int(min(lefts)) - 1, int(min(tops)) - 1, int(max(rights)) + 1, int(max(bottoms)) + 1


def draw_runs(draw: ImageDraw.ImageDraw, text: Sequence[TextRun], font_size: int, start: tuple[float, float]) -> None:
    pen, baseline = start
    for run in text:
        font = load_font(run.face.path, font_size)
        width = outline_width(font_size)
        draw.text(
            (pen, baseline), run.text, "white", font, direction=run.direction, anchor="ls", stroke_width=width, stroke_fill=(0, 0, 0, 160)
        )
        pen += font.getlength(run.text, direction=run.direction)


def outline_width(font_size: int) -> int:
    return max(1, font_size // 16)


@lru_cache(64)
def load_font(path: Path, font_size: int) -> ImageFont.FreeTypeFont:
    """Text in several fonts is measured run by run, so that a font is asked for many times."""
    return ImageFont.truetype(path, font_size, layout_engine=ImageFont.Layout.RAQM)
