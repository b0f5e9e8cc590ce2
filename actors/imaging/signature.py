"""A signature on a picture: how large, where, how strong.

The mark's width is a share of the picture's; it keeps its proportions, stays 10 pixels from the edges and never outgrows the picture.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from actors.imaging.fonts import TextRun
from contracts.watermark import Signature, SignaturePosition, SignatureSize

MARGIN_PIXELS = 10
SIGNATURE_SHARE: dict[SignatureSize, float] = {"small": 0.15, "medium": 0.25, "large": 0.35}
REFERENCE_FONT_SIZE = 40
MIN_SIGNATURE_FONT_SIZE, MAX_SIGNATURE_FONT_SIZE = 8, 1000


def sign(picture: Image.Image, mark: Image.Image, signature: Signature) -> Image.Image:
    """An RGBA picture with an RGBA mark laid on it."""
    mark = apply_opacity(mark, signature.opacity)
    layer = Image.new("RGBA", picture.size)
    layer.paste(mark, mark_position(picture.size, mark.size, signature.position))
    return Image.alpha_composite(picture, layer)


def side_without_margins(side: int) -> int:
    """What the margins leave of a side; a picture smaller than its margins still has one pixel."""
    return max(1, side - 2 * MARGIN_PIXELS)


def fit_mark(picture: tuple[int, int], mark: tuple[int, int], size: SignatureSize, max_height: int | None = None) -> tuple[int, int]:
    """Width and height of the mark, in pixels: the share of the width, unless the room in the picture, or `tallest`, is less."""
    width, height = mark
    highest = min(side_without_margins(picture[1]), max_height or picture[1])
    scale = min(SIGNATURE_SHARE[size] * picture[0] / width, side_without_margins(picture[0]) / width, highest / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def mark_position(picture: tuple[int, int], mark: tuple[int, int], position: SignaturePosition) -> tuple[int, int]:
    """Where the mark's top left corner lies."""
    vertical, _, horizontal = position.partition("-")
    left = {"left": MARGIN_PIXELS, "center": (picture[0] - mark[0]) // 2, "right": picture[0] - mark[0] - MARGIN_PIXELS}[horizontal]
    top = MARGIN_PIXELS if vertical == "top" else picture[1] - mark[1] - MARGIN_PIXELS
    return max(0, min(left, picture[0] - mark[0])), max(0, min(top, picture[1] - mark[1]))


def apply_opacity(mark: Image.Image, opacity: float) -> Image.Image:
    """The mark with its own transparency multiplied."""
    mark = mark.copy()
    mark.putalpha(mark.getchannel("A").point([round(level * opacity) for level in range(256)]))
    return mark


def render_image_mark(mark: Image.Image, picture: tuple[int, int], size: SignatureSize) -> Image.Image:
    return mark.resize(fit_mark(picture, mark.size, size), Image.Resampling.LANCZOS)


def render_text_mark(text: Sequence[TextRun], picture: tuple[int, int], size: SignatureSize) -> Image.Image:
    """The text in white with a dark rim, so that it is seen on any ground. A short text is no taller than the share of the height."""
    tallest = max(1, round(SIGNATURE_SHARE[size] * picture[1]))
    rough = render_text(text, REFERENCE_FONT_SIZE)
    goal = fit_mark(picture, rough.size, size, tallest)
    # Letters come in whole sizes only: drawn at twice the size, then brought to the very pixel.
    points = math.ceil(2 * REFERENCE_FONT_SIZE * goal[0] / rough.width)
    drawn = render_text(text, max(MIN_SIGNATURE_FONT_SIZE, min(MAX_SIGNATURE_FONT_SIZE, points)))
    return drawn.resize(fit_mark(picture, drawn.size, size, tallest), Image.Resampling.LANCZOS)


def render_text(text: Sequence[TextRun], font_size: int) -> Image.Image:
    """The text on nothing, cut to its ink."""
    left, top, right, bottom = measure_text(text, font_size)
    mark = Image.new("RGBA", (right - left, bottom - top))
    draw_runs(ImageDraw.Draw(mark), text, font_size, (-left, -top))
    return mark.crop(mark.getbbox() or (0, 0, 1, 1))


def measure_text(text: Sequence[TextRun], font_size: int) -> tuple[int, int, int, int]:
    """The box of ink and rim around a text whose baseline begins at 0, 0: left, top, right, bottom."""
    pen, boxes = 0.0, []
    for run in text:
        font = load_font(run.face.path, font_size)
        left, top, right, bottom = font.getbbox(run.text, anchor="ls", stroke_width=outline_width(font_size))
        boxes.append((left + pen, top, right + pen, bottom))
        pen += font.getlength(run.text)
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return int(min(lefts)) - 1, int(min(tops)) - 1, int(max(rights)) + 1, int(max(bottoms)) + 1


def draw_runs(draw: ImageDraw.ImageDraw, text: Sequence[TextRun], font_size: int, start: tuple[float, float]) -> None:
    pen, baseline = start
    for run in text:
        font = load_font(run.face.path, font_size)
        draw.text((pen, baseline), run.text, "white", font, anchor="ls", stroke_width=outline_width(font_size), stroke_fill=(0, 0, 0, 160))
        pen += font.getlength(run.text)


def outline_width(font_size: int) -> int:
    return max(1, font_size // 16)


def load_font(path: Path, font_size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, font_size)
